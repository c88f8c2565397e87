import { benchTwoThreads } from "./ring_cases.ts";

/** Ends the threads. */
export const close: () => void = benchTwoThreads("split");

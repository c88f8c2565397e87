import { benchPopPush, benchRoundTrip } from "./ring_cases.ts";

// A file of its own for each format: what ran on one would keep the compiler from its best on the other.
benchPopPush("packed");
benchRoundTrip("packed");

/**
 * The device's thread of {@link TwoThreads}: takes one message and serves runs until it is asked to end.
 *
 * @module
 */

import { serveRuns, type TwoThreadsOrder } from "./two_threads.ts";

self.onmessage = ({ data }: MessageEvent<TwoThreadsOrder>) => {
  serveRuns(data);
  self.close();
};

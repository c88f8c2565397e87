/**
 * The device on Linux: vhost-user front-ends (QEMU, user-mode-linux) by Unix socket, host
 * programs by Unix sockets.
 *
 * @module
 */

export {
  DEFAULT_GUEST_CID,
  type DeviceOptions,
  type RunningDevice,
  startDevice,
} from "./device.ts";
export type { GuestOptions } from "./device_host.ts";
export { VERSION } from "./version.ts";
export type { Log, LogLevel } from "../diagnostics.ts";
export type { RingChoice } from "../virtio_device.ts";
export type { RingFormat } from "../../ring/queue.ts";

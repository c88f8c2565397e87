/**
 * Real Linux guests for tests and for trying things out: user-mode-linux and QEMU,
 * booted on a vhost-user vsock device, with an agent in them that runs programs and
 * scenarios.
 *
 * @example
 * ```ts ignore
 * import { bootGuest } from "./mod.ts";
 *
 * await using guest = await bootGuest({ vm: "uml", socketPath: "/run/vhost.sock" });
 * const receiving = guest.start({ op: "recv", listen: 1234 });
 * await receiving.event("listening");
 * // ... a host program connects and sends ...
 * console.log(await receiving.result);
 * await guest.shutdown();
 * ```
 *
 * @module
 */

export {
  AgentCall,
  AgentError,
  type AgentEvent,
  type AgentReady,
  type AgentRequest,
  CALL_TIMEOUT_MS,
  type CallOptions,
} from "./control.ts";
export {
  BOOT_TIMEOUT_MS,
  bootGuest,
  type ExecOptions,
  type ExecResult,
  Guest,
  type GuestOptions,
  type RunningProgram,
  SHUTDOWN_TIMEOUT_MS,
  type TerminalSize,
} from "./guest.ts";
export { cachedKernel, type GuestKernel, guestKernel } from "./kernel.ts";
export {
  type MissingProgram,
  missingPrograms,
  MissingProgramsError,
  missingWords,
  type VmKind,
} from "./programs.ts";
export { QmpError } from "./qmp.ts";

/**
 * A QEMU guest without hardware acceleration: Debian's cloud kernel and an initial
 * file system with the host's Python.
 *
 * @module
 */

import { CpioWriter } from "./cpio.ts";
import { addHostFiles, baseArchive, GUEST_FOLDER } from "./initramfs.ts";
import { guestKernel } from "./kernel.ts";
import { findPython, requireProgram } from "./programs.ts";
import {
  initConfig,
  type Machine,
  type MachineOptions,
  textBeside,
} from "./setup.ts";

/** Name of the virtio-serial port that the agent listens on. */
const CONTROL_PORT = "/dev/vport0p1";

/**
 * Prepares a QEMU guest.
 *
 * Its standard input and output become the control channel, a virtio-serial port
 * without any terminal in between; the kernel's console goes to standard error.
 */
export async function qemuMachine(options: MachineOptions): Promise<Machine> {
  const { folder } = options;
  const command = requireProgram("qemu-system-x86_64");
  const python = await findPython();
  const kernel = await guestKernel(options.onProgress);
  const base = await baseArchive(kernel, options.onProgress);
  const archive = new CpioWriter();
  const text = new TextEncoder();
  archive.file(
    `${GUEST_FOLDER}/init`,
    text.encode(await textBeside("init.sh")),
    0o755,
  );
  archive.file(
    `${GUEST_FOLDER}/agent.py`,
    text.encode(await textBeside("agent.py")),
  );
  archive.file(
    `${GUEST_FOLDER}/config`,
    text.encode(initConfig({
      busybox: "/bin/busybox",
      python: python.executable,
      agent: `${GUEST_FOLDER}/agent.py`,
      control: CONTROL_PORT,
      acknowledge: false,
      modules: base.modules,
      directory: options.directory,
      path: `/bin:/usr/bin:/sbin:/usr/sbin:${Deno.env.get("PATH") ?? ""}`,
    })),
  );
  await addHostFiles(archive, options.include);
  // The kernel unpacks one archive after the other from one file.
  const initrd = `${folder}/initrd`;
  await Deno.copyFile(base.path, initrd);
  await Deno.writeFile(initrd, archive.finish(), { append: true });

  const qmpPath = `${folder}/qmp.sock`;
  const args = [
    "-nodefaults",
    "-nographic",
    "-no-reboot",
    "-accel",
    "tcg",
    // Without rdrand the guest's Python waits a second for the first random number.
    "-cpu",
    "qemu64,+rdrand",
    "-object",
    `memory-backend-memfd,id=mem,size=${options.memoryMiB}M,share=on`,
    "-machine",
    "q35,memory-backend=mem",
    "-m",
    `${options.memoryMiB}M`,
    "-kernel",
    kernel.image,
    "-initrd",
    initrd,
    "-append",
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off cryptomgr.notests " +
    `random.trust_cpu=on rdinit=${GUEST_FOLDER}/init`,
    "-serial",
    "file:/dev/stderr",
    "-qmp",
    `unix:${qmpPath},server=on,wait=off`,
    "-device",
    "virtio-serial-pci",
    "-chardev",
    "stdio,id=control,signal=off",
    "-device",
    "virtserialport,chardev=control",
  ];
  if (options.socketPath !== undefined) {
    args.push(
      "-chardev",
      `socket,id=vsock,path=${options.socketPath.replaceAll(",", ",,")}`,
      "-device",
      `vhost-user-vsock-pci,chardev=vsock,packed=${
        options.packed ? "on" : "off"
      }`,
    );
  }
  return { command, args, env: {}, window: undefined, qmpPath };
}

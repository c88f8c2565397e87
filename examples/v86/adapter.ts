/**
 * Plugs our vsock device into v86: its registers as 256 ports, its memory, its interrupt line, and its turns.
 *
 * Works in a browser.
 *
 * @module
 */

import { followMemory } from "../../device/emulator.ts";
import { PciTransport } from "../../device/pci.ts";
import { type RingChoice, VirtioDevice } from "../../device/virtio_device.ts";
import { VsockDevice } from "../../device/vsock/device.ts";
import type { HostSide } from "../../device/vsock/host.ts";
import type { V86Emulator } from "./v86.ts";

/** Where Linux finds the device: function 0 of device 5. */
const PCI_ID = 5 << 3;
/** Where its ports are until Linux moves them; v86 moves only those from 0x1000 on. */
const FIRST_PORT = 0xd000;
/** Its interrupt; it shares the line with no other device, as v86 loses interrupts of shared lines. */
const IRQ = 11;
/** In the ISA bridge's configuration space: the interrupts of PIRQA to PIRQD. */
const PIRQ_ROUTES = 0x60;
/** Descriptors of each queue; the rx queue takes 3840 bytes of the guest for each. */
const QUEUE_SIZE = 128;
/** Passes of the device before others have a turn. */
const PASSES = 8;

/** What a device is plugged in with. */
export type VsockOptions = {
  /** The guest's CID. */
  guestCid: number;
  /** Ring formats that it offers. */
  ring: RingChoice;
  /** Where the guest's connections go. */
  host: HostSide;
};

/** A vsock device in an emulator. */
export class V86Vsock {
  /** The device. */
  readonly vsock: VsockDevice;
  /** Its virtio side. */
  readonly virtio: VirtioDevice;
  /** Its registers. */
  readonly pci: PciTransport;

  #held = false;
  #due = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** Plugs a device into `emulator`, which has been loaded and has neither run nor been restored yet. */
  constructor(emulator: V86Emulator, options: VsockOptions) {
    const { cpu } = emulator.v86;
    const { guestCid, ring, host } = options;
    this.vsock = new VsockDevice({ guestCid, host, maxQueueSize: QUEUE_SIZE });
    // A processor and its device take turns in one thread, so that plain reads are in order.
    this.virtio = new VirtioDevice(this.vsock, { ring, strongOrdering: true });
    this.vsock.attach(this.virtio);
    const pci = new PciTransport(this.virtio, {
      // A WebAssembly memory grows, and its old buffer is detached then.
      memory: followMemory(() => ({
        guestAddress: 0,
        size: cpu.memory_size[0]!,
        buffer: cpu.wasm_memory.buffer as ArrayBuffer,
        byteOffset: cpu.mem8.byteOffset,
      })),
      interrupt: (level) => {
        if (level) cpu.devices.pci.raise_irq(PCI_ID);
        else cpu.devices.pci.lower_irq(PCI_ID);
      },
      space: "io",
      barAddress: FIRST_PORT,
      interruptLine: IRQ,
    });
    this.pci = pci;
    // v86 moves a port's handlers with the BAR, so that each knows its own place in it.
    for (let offset = 0; offset < pci.barSize; offset++) {
      const port = FIRST_PORT + offset;
      const read = (width: number) => () => pci.read(offset, width) | 0;
      const write = (width: number) => (value: number) => {
        pci.write(offset, width, value >>> 0);
        this.wake();
      };
      cpu.io.register_read(port, this, read(1), read(2), read(4));
      cpu.io.register_write(port, this, write(1), write(2), write(4));
    }
    cpu.devices.pci.isa_bridge_space8.fill(IRQ, PIRQ_ROUTES, PIRQ_ROUTES + 4);
    cpu.devices.pci.register_device({
      name: "vsock",
      pci_id: PCI_ID,
      pci_space: [...pci.configSpace()],
      pci_bars: [{ size: pci.barSize }],
    });
  }

  /** Lets the device work soon: when the processor's turn is over, and not in the middle of an instruction. */
  wake(): void {
    if (this.#due) return;
    this.#due = true;
    queueMicrotask(() => this.#turn());
  }

  /** Keeps the device from working until {@link V86Vsock.release}, while the guest goes on. */
  hold(): void {
    this.#held = true;
    clearTimeout(this.#timer);
  }

  /** Lets it work again. */
  release(): void {
    this.#held = false;
    this.wake();
  }

  #turn(): void {
    this.#due = false;
    if (this.#held) return;
    clearTimeout(this.#timer);
    this.pci.syncMemory();
    const { vsock } = this;
    if (vsock.nextDeadline() <= performance.now()) vsock.expire();
    let more = true;
    for (let pass = 0; more && pass < PASSES; pass++) more = vsock.process();
    const wait = more ? 0 : vsock.nextDeadline() - performance.now();
    if (wait === Infinity) return;
    this.#timer = setTimeout(() => this.wake(), Math.max(0, wait));
  }
}

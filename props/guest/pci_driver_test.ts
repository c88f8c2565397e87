import { assertEquals, assertThrows } from "@std/assert";
import { PciTransport } from "../../device/pci.ts";
import { VirtioDevice } from "../../device/virtio_device.ts";
import {
  PCI_CAPABILITY_LIST,
  PCI_DEVICE_ID,
  PCI_VENDOR_ID,
  VIRTIO_MSI_NO_VECTOR,
  VIRTIO_PCI_COMMON_GF,
  VIRTIO_PCI_COMMON_GFSELECT,
  VIRTIO_PCI_COMMON_MSIX,
  VIRTIO_PCI_COMMON_Q_ENABLE,
  VIRTIO_PCI_COMMON_Q_MSIX,
  VIRTIO_PCI_COMMON_Q_RESET,
  VIRTIO_PCI_COMMON_Q_SIZE,
  VIRTIO_PCI_COMMON_STATUS,
} from "../../device/virtio_pci.ts";
import { GuestMemory } from "../../ring/memory.ts";
import { type PciBus, PciDriver } from "./pci_driver.ts";
import { EchoDevice } from "./register_rig.ts";

/** A function whose accesses are noted, and may be answered otherwise. */
class Bus implements PciBus {
  readonly log: string[] = [];
  /** What configuration space reads as, by offset. */
  readonly config = new Map<number, number>();
  /** What the BAR reads as, by offset. */
  readonly bar = new Map<number, number>();
  readonly #pci: PciTransport;

  constructor() {
    this.#pci = new PciTransport(
      new VirtioDevice(new EchoDevice([8, 8]), { ringReset: true }),
      {
        memory: () => new GuestMemory([]),
        interrupt: () => {},
        msix: { vectors: 3, message: () => {} },
      },
    );
  }

  read(offset: number, width: number): number {
    this.log.push(`R${offset}.${width}`);
    return this.bar.get(offset) ?? this.#pci.read(offset, width);
  }
  write(offset: number, width: number, value: number): void {
    this.log.push(`W${offset}.${width}`);
    this.#pci.write(offset, width, value);
  }
  configRead(offset: number, width: number): number {
    return this.config.get(offset) ?? this.#pci.configRead(offset, width);
  }
  configWrite(offset: number, width: number, value: number): void {
    this.#pci.configWrite(offset, width, value);
  }
}

const AREAS = {
  size: 8,
  descriptorArea: 0x1000,
  driverArea: 0x2000,
  deviceArea: 0x3000,
};

Deno.test("PciDriver.probe() takes a virtio device of any revision, and nothing else", () => {
  const driver = new PciDriver(new Bus());
  assertEquals(driver.probe(), 63);
  assertEquals(driver.barSize, 4096);
  for (
    const [offset, value] of [[PCI_VENDOR_ID, 0x8086], [PCI_DEVICE_ID, 0x1000]]
  ) {
    const bus = new Bus();
    bus.config.set(offset!, value!);
    assertThrows(
      () => new PciDriver(bus).probe(),
      TypeError,
      "Cannot drive the device: vendor",
    );
    assertEquals(bus.log, []);
  }
});

Deno.test("PciDriver.probe() ignores structures of reserved types and BARs, and lists that never end", () => {
  for (const [at, value] of [[3, 77], [4, 6]]) {
    const bus = new Bus();
    const first = bus.configRead(PCI_CAPABILITY_LIST, 1);
    bus.config.set(first + at!, value!);
    assertThrows(
      () => new PciDriver(bus).probe(),
      TypeError,
      "it has no structure of type 1",
    );
  }
  const bus = new Bus();
  const first = bus.configRead(PCI_CAPABILITY_LIST, 1);
  bus.config.set(first + 1, first);
  assertThrows(
    () => new PciDriver(bus).probe(),
    TypeError,
    "it has no structure of type 2",
  );
});

Deno.test("PciDriver accesses fields as wide as they are", () => {
  const bus = new Bus();
  const driver = new PciDriver(bus);
  driver.probe();
  driver.accept(1n << 32n);
  driver.setupQueue(1, AREAS);
  driver.kick(1);
  driver.takeInterrupt();
  const widths = new Map([
    ...[0x00, 0x04, 0x08, 0x0c].map((at) => [at, 4] as const),
    ...[0x20, 0x24, 0x28, 0x2c, 0x30, 0x34].map((at) => [at, 4] as const),
    [0x14, 1],
    [0x15, 1],
  ]);
  for (const entry of bus.log) {
    const [, offset, width] = /^[RW](\d+)\.(\d)$/.exec(entry)!;
    const at = Number(offset);
    const expected = widths.get(at) ?? (at === 0x40 ? 1 : 2);
    assertEquals(Number(width), expected, entry);
  }
});

Deno.test("PciDriver selects before it accesses, enables a queue last, and never writes what is not its own", () => {
  const bus = new Bus();
  const driver = new PciDriver(bus);
  driver.probe();
  bus.log.length = 0;
  driver.accept(1n << 32n);
  const features = bus.log.filter((entry) =>
    [VIRTIO_PCI_COMMON_GFSELECT, VIRTIO_PCI_COMMON_GF].includes(
      Number(/\d+/.exec(entry)![0]),
    )
  );
  assertEquals(
    features,
    [1, 2, 3, 4].flatMap(() => ["W8.4", "W12.4"]),
  );
  bus.log.length = 0;
  driver.setupQueue(0, AREAS);
  const enable = bus.log.indexOf(`W${VIRTIO_PCI_COMMON_Q_ENABLE}.2`);
  const size = bus.log.indexOf(`W${VIRTIO_PCI_COMMON_Q_SIZE}.2`);
  assertEquals(size > 0 && size < enable, true);
  const later = bus.log.slice(enable + 1);
  assertEquals(later.filter((entry) => entry.startsWith("W")), ["W22.2"]);
  for (const readOnly of [4, 18, 21, 30, 56]) {
    assertEquals(bus.log.some((one) => one.startsWith(`W${readOnly}.`)), false);
  }
});

Deno.test("PciDriver verifies that an event is mapped to its vector", () => {
  for (const field of [VIRTIO_PCI_COMMON_MSIX, VIRTIO_PCI_COMMON_Q_MSIX]) {
    const bus = new Bus();
    const driver = new PciDriver(bus, { msix: true });
    driver.probe();
    assertEquals(driver.vectors, 3);
    bus.bar.set(field, VIRTIO_MSI_NO_VECTOR);
    assertThrows(
      () => driver.setupQueue(0, AREAS),
      TypeError,
      "Cannot map an event to vector",
    );
  }
});

Deno.test("PciDriver takes a queue for reset once queue_reset and queue_enable read 0", () => {
  for (
    const [field, value] of [
      [VIRTIO_PCI_COMMON_Q_RESET, 1],
      [VIRTIO_PCI_COMMON_Q_ENABLE, 1],
    ]
  ) {
    const bus = new Bus();
    const driver = new PciDriver(bus);
    driver.probe();
    assertEquals(driver.resetQueue(0), true);
    bus.bar.set(field!, value!);
    assertEquals(driver.resetQueue(0), false);
  }
});

Deno.test("PciDriver.reset() reads the status back", () => {
  const bus = new Bus();
  const driver = new PciDriver(bus);
  driver.probe();
  bus.log.length = 0;
  driver.reset();
  const status = VIRTIO_PCI_COMMON_STATUS;
  assertEquals(bus.log, [`W${status}.1`, `R${status}.1`]);
  bus.bar.set(status, 64);
  assertThrows(() => driver.reset(), TypeError, "is not reset");
});

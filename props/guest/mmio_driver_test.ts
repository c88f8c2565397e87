import { assertEquals, assertThrows } from "@std/assert";
import {
  VIRTIO_MMIO_CONFIG,
  VIRTIO_MMIO_CONFIG_GENERATION,
  VIRTIO_MMIO_DEVICE_FEATURES,
  VIRTIO_MMIO_DEVICE_FEATURES_SEL,
  VIRTIO_MMIO_DEVICE_ID,
  VIRTIO_MMIO_DRIVER_FEATURES,
  VIRTIO_MMIO_DRIVER_FEATURES_SEL,
  VIRTIO_MMIO_INTERRUPT_ACK,
  VIRTIO_MMIO_INTERRUPT_STATUS,
  VIRTIO_MMIO_MAGIC,
  VIRTIO_MMIO_MAGIC_VALUE,
  VIRTIO_MMIO_QUEUE_READY,
  VIRTIO_MMIO_QUEUE_SEL,
  VIRTIO_MMIO_STATUS,
  VIRTIO_MMIO_VERSION,
} from "../../device/virtio_mmio.ts";
import { MmioDriver, type RegisterBus } from "./mmio_driver.ts";

/** Registers that hold what is written to them, and a log of the accesses: R or W, and the offset. */
class Registers implements RegisterBus {
  readonly log: string[] = [];
  readonly values = new Map<number, number>([
    [VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_MAGIC],
    [VIRTIO_MMIO_VERSION, 2],
    [VIRTIO_MMIO_DEVICE_ID, 19],
  ]);
  /** Called before each read. */
  beforeRead: (offset: number) => void = () => {};

  read(offset: number, width: number): number {
    this.beforeRead(offset);
    assertEquals(width, offset < VIRTIO_MMIO_CONFIG ? 4 : 1);
    this.log.push(`R${offset}`);
    return this.values.get(offset) ?? 0;
  }
  write(offset: number, width: number, value: number): void {
    assertEquals(width, 4);
    this.log.push(`W${offset}`);
    this.values.set(offset, value);
  }
}

Deno.test("MmioDriver.probe() checks magic value and version, then the type, and nothing else", () => {
  const registers = new Registers();
  assertEquals(new MmioDriver(registers).probe(), 19);
  const checked = [VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_VERSION];
  assertEquals(
    registers.log,
    [...checked, VIRTIO_MMIO_DEVICE_ID].map((offset) => `R${offset}`),
  );
  registers.values.set(VIRTIO_MMIO_DEVICE_ID, 0);
  assertEquals(new MmioDriver(registers).probe(), 0);
  for (const offset of checked) {
    const other = new Registers();
    other.values.set(offset, 1);
    assertThrows(() => new MmioDriver(other).probe(), TypeError);
    assertEquals(other.log, checked.map((offset) => `R${offset}`));
  }
});

Deno.test("MmioDriver selects a word of features before it reads or writes one", () => {
  const registers = new Registers();
  const driver = new MmioDriver(registers);
  driver.offeredFeatures();
  driver.accept(1n << 32n);
  for (
    const [select, access] of [
      [
        `W${VIRTIO_MMIO_DEVICE_FEATURES_SEL}`,
        `R${VIRTIO_MMIO_DEVICE_FEATURES}`,
      ],
      [
        `W${VIRTIO_MMIO_DRIVER_FEATURES_SEL}`,
        `W${VIRTIO_MMIO_DRIVER_FEATURES}`,
      ],
    ] as const
  ) {
    const log = registers.log.filter((at) => at === select || at === access);
    assertEquals(log, [1, 2, 3, 4].flatMap(() => [select, access]));
  }
});

Deno.test("MmioDriver.stopQueue() writes 0 to QueueReady and reads it back", () => {
  const registers = new Registers();
  const driver = new MmioDriver(registers);
  assertEquals(driver.stopQueue(1), true);
  const ready = `${VIRTIO_MMIO_QUEUE_READY}`;
  assertEquals(registers.values.get(VIRTIO_MMIO_QUEUE_SEL), 1);
  assertEquals(registers.log.filter((at) => at.slice(1) === ready), [
    `W${ready}`,
    `R${ready}`,
  ]);
  registers.beforeRead = () => registers.values.set(VIRTIO_MMIO_QUEUE_READY, 1);
  assertEquals(driver.stopQueue(1), false);
});

Deno.test("MmioDriver.takeInterrupt() acknowledges what it read, and no undefined bit", () => {
  const registers = new Registers();
  registers.values.set(VIRTIO_MMIO_INTERRUPT_STATUS, 0xfffffffe);
  assertEquals(new MmioDriver(registers).takeInterrupt(), 2);
  assertEquals(registers.values.get(VIRTIO_MMIO_INTERRUPT_ACK), 2);
});

Deno.test("MmioDriver.readConfig() reads again where the generation has changed", () => {
  const registers = new Registers();
  let reads = 0;
  registers.beforeRead = (offset) => {
    if (offset !== VIRTIO_MMIO_CONFIG + 2 || reads++ > 0) return;
    for (let i = 0; i < 4; i++) registers.values.set(VIRTIO_MMIO_CONFIG + i, 9);
    registers.values.set(VIRTIO_MMIO_CONFIG_GENERATION, 1);
  };
  assertEquals([...new MmioDriver(registers).readConfig(4)], [9, 9, 9, 9]);
  assertEquals(reads, 2);
});

Deno.test("MmioDriver sets status bits beside those that are set", () => {
  const registers = new Registers();
  const driver = new MmioDriver(registers);
  registers.values.set(VIRTIO_MMIO_STATUS, 11);
  driver.driverOk();
  assertEquals(registers.values.get(VIRTIO_MMIO_STATUS), 15);
});

import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { MSIX_DATA } from "../props/guest/pci_driver.ts";
import { PciRig, type PciRigOptions } from "../props/guest/pci_rig.ts";
import { EchoDevice, initialWords } from "../props/guest/register_rig.ts";
import { GuestMemory } from "../ring/memory.ts";
import type { RingFormat } from "../ring/queue.ts";
import {
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_RESET,
} from "../ring/virtio_ring.ts";
import { testTransport } from "./_test_transport.ts";
import { type PciOptions, PciTransport } from "./pci.ts";
import { base64, bytesOfBase64, seal, SnapshotError } from "./snapshot.ts";
import { VIRTIO_F_QUEUE_STATE } from "./transport_features.ts";
import { VirtioDevice } from "./virtio_device.ts";
import {
  PCI_BASE_ADDRESS_0,
  PCI_CAP_ID_MSIX,
  PCI_CAP_ID_VNDR,
  PCI_CAPABILITY_LIST,
  PCI_CLASS_PROG,
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_IO,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_DEVICE_ID,
  PCI_INTERRUPT_LINE,
  PCI_INTERRUPT_PIN,
  PCI_MSIX_FLAGS_ENABLE,
  PCI_MSIX_FLAGS_MASKALL,
  PCI_REVISION_ID,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_STATUS_INTERRUPT,
  PCI_SUBSYSTEM_ID,
  PCI_SUBSYSTEM_VENDOR_ID,
  PCI_VENDOR_ID,
  VIRTIO_MSI_NO_VECTOR,
  VIRTIO_PCI_CAP_BAR,
  VIRTIO_PCI_CAP_COMMON_CFG,
  VIRTIO_PCI_CAP_DEVICE_CFG,
  VIRTIO_PCI_CAP_ISR_CFG,
  VIRTIO_PCI_CAP_LENGTH,
  VIRTIO_PCI_CAP_NOTIFY_CFG,
  VIRTIO_PCI_CAP_OFFSET,
  VIRTIO_PCI_CAP_PCI_CFG,
  VIRTIO_PCI_CFG_CAP_DATA,
  VIRTIO_PCI_COMMON_ADM_Q_IDX,
  VIRTIO_PCI_COMMON_ADM_Q_NUM,
  VIRTIO_PCI_COMMON_CFGGENERATION,
  VIRTIO_PCI_COMMON_DF,
  VIRTIO_PCI_COMMON_DFSELECT,
  VIRTIO_PCI_COMMON_GF,
  VIRTIO_PCI_COMMON_GFSELECT,
  VIRTIO_PCI_COMMON_MSIX,
  VIRTIO_PCI_COMMON_NUMQ,
  VIRTIO_PCI_COMMON_Q_DESCLO,
  VIRTIO_PCI_COMMON_Q_ENABLE,
  VIRTIO_PCI_COMMON_Q_MSIX,
  VIRTIO_PCI_COMMON_Q_NDATA,
  VIRTIO_PCI_COMMON_Q_NOFF,
  VIRTIO_PCI_COMMON_Q_RESET,
  VIRTIO_PCI_COMMON_Q_SELECT,
  VIRTIO_PCI_COMMON_Q_SIZE,
  VIRTIO_PCI_COMMON_STATUS,
  VIRTIO_PCI_NOTIFY_CAP_MULT,
} from "./virtio_pci.ts";

const FORMATS = ["split", "packed"] as const;

// The same driver and tests as over MMIO, however the BAR is accessed.
testTransport(
  Deno.test,
  "PciTransport",
  "pci",
  (options) => new PciRig(options),
);
for (const access of ["bytes", "window"] as const) {
  testTransport(
    Deno.test,
    `PciTransport, accessed by ${access}:`,
    "pci",
    (options) => new PciRig({ ...options, access, space: "io" }),
    23,
  );
}

function started(format: RingFormat, more: PciRigOptions = {}): PciRig {
  const rig = new PciRig({ format, ...more });
  rig.start();
  return rig;
}

function plugged(
  options: Partial<PciOptions> = {},
  sizes: readonly number[] = [8],
): PciTransport {
  return new PciTransport(new VirtioDevice(new EchoDevice(sizes)), {
    memory: () => new GuestMemory([]),
    interrupt: () => {},
    ...options,
  });
}

type Capability = { at: number; id: number; type: number; next: number };

function capabilities(pci: PciTransport): Capability[] {
  const found: Capability[] = [];
  let at = pci.configRead(PCI_CAPABILITY_LIST, 1);
  while (at !== 0) {
    assertEquals(at % 4, 0);
    assert(at >= 0x40 && found.length < 20);
    const next = pci.configRead(at + 1, 1);
    found.push({
      at,
      id: pci.configRead(at, 1),
      type: pci.configRead(at + 3, 1),
      next,
    });
    at = next;
  }
  return found;
}

function structure(pci: PciTransport, type: number): Capability & {
  offset: number;
  length: number;
} {
  const found = capabilities(pci).filter((one) =>
    one.id === PCI_CAP_ID_VNDR && one.type === type
  );
  assertEquals(found.length, 1, `type ${type}`);
  const { at } = found[0]!;
  return {
    ...found[0]!,
    offset: pci.configRead(at + VIRTIO_PCI_CAP_OFFSET, 4),
    length: pci.configRead(at + VIRTIO_PCI_CAP_LENGTH, 4),
  };
}

Deno.test("PciTransport presents a virtio device in its header", () => {
  const pci = plugged();
  const at = (offset: number, width: number) => pci.configRead(offset, width);
  assertEquals(at(PCI_VENDOR_ID, 2), 0x1af4);
  assertEquals(at(PCI_DEVICE_ID, 2), 0x1040 + 63);
  assertEquals(at(PCI_VENDOR_ID, 4), 0x107f_1af4);
  assert(at(PCI_REVISION_ID, 1) >= 1);
  assert(at(PCI_SUBSYSTEM_ID, 2) >= 0x40);
  assertEquals(at(PCI_SUBSYSTEM_VENDOR_ID, 2), 0x1af4);
  assertEquals(at(PCI_CLASS_PROG, 4) & 0xffffff, 0x078000);
  assertEquals(at(PCI_STATUS, 2), PCI_STATUS_CAP_LIST);
  assertEquals(at(PCI_INTERRUPT_PIN, 1), 1);
  assertEquals(at(0x0e, 1), 0);
  const named = plugged({
    subsystemVendorId: 0x1234,
    subsystemId: 0x5678,
    revision: 7,
    classCode: 0x020304,
    barAddress: 0x12345,
    interruptLine: 11,
    space: "io",
  });
  const image = new DataView(named.configSpace().buffer);
  assertEquals(image.byteLength, 256);
  assertEquals(image.getUint16(PCI_SUBSYSTEM_VENDOR_ID, true), 0x1234);
  assertEquals(image.getUint16(PCI_SUBSYSTEM_ID, true), 0x5678);
  assertEquals(image.getUint32(PCI_REVISION_ID, true), 0x02030407);
  assertEquals(image.getUint32(PCI_BASE_ADDRESS_0, true), 0x12301);
  assertEquals(image.getUint8(PCI_INTERRUPT_LINE), 11);
  // A copy, which nobody changes under the function.
  new Uint8Array(image.buffer).fill(0);
  assertEquals(named.configRead(PCI_VENDOR_ID, 2), 0x1af4);
});

Deno.test("PciTransport presents each structure once, aligned, inside the BAR and beside the others", () => {
  for (const space of ["io", "memory"] as const) {
    for (const queueState of [false, true]) {
      for (const count of [1, 3, 20]) {
        const virtio = new VirtioDevice(
          new EchoDevice(Array.from({ length: count }, () => 8)),
          { queueState },
        );
        const msix = space === "memory" && count > 1
          ? { vectors: count + 1, message: () => {} }
          : undefined;
        const pci = new PciTransport(virtio, {
          memory: () => new GuestMemory([]),
          interrupt: () => {},
          space,
          ...(msix === undefined ? {} : { msix }),
        });
        const places = [
          VIRTIO_PCI_CAP_COMMON_CFG,
          VIRTIO_PCI_CAP_NOTIFY_CFG,
          VIRTIO_PCI_CAP_ISR_CFG,
          VIRTIO_PCI_CAP_DEVICE_CFG,
        ].map((type) => structure(pci, type));
        const [common, notify, isr, device] = places;
        for (const { at } of places) {
          assertEquals(pci.configRead(at + VIRTIO_PCI_CAP_BAR, 1), 0);
        }
        assertEquals(common!.offset % 4, 0);
        // With room for the states of queues where they are offered.
        assertEquals(common!.length, queueState ? 0x48 : 0x40);
        assertEquals(device!.offset % 4, 0);
        assertEquals(device!.length, 12);
        // Room for 32 bits, as VIRTIO_F_NOTIFICATION_DATA may be negotiated.
        const multiplier = pci.configRead(
          notify!.at + VIRTIO_PCI_NOTIFY_CAP_MULT,
          4,
        );
        assertEquals(multiplier, 4);
        assertEquals(notify!.offset % 4, 0);
        assert(notify!.length >= (count - 1) * multiplier + 4);
        assert(isr!.length >= 1);
        const all = places.map(({ offset, length }) => [offset, length]);
        const found = capabilities(pci).find(({ id }) =>
          id === PCI_CAP_ID_MSIX
        );
        assertEquals(found !== undefined, msix !== undefined);
        if (found !== undefined) {
          const vectors = (pci.configRead(found.at + 2, 2) & 0x7ff) + 1;
          assertEquals(vectors, count + 1);
          const table = pci.configRead(found.at + 4, 4);
          const pending = pci.configRead(found.at + 8, 4);
          assertEquals([table % 8, pending % 8], [0, 0]);
          all.push([table, 16 * vectors], [pending, 8]);
        }
        all.sort(([a], [b]) => a! - b!);
        let end = 0;
        for (const [offset, length] of all) {
          assert(offset! >= end);
          end = offset! + length!;
        }
        assert(end <= pci.barSize);
        assertEquals(pci.barSize & (pci.barSize - 1), 0);
        assertEquals(pci.barSize, space === "io" ? 256 : 4096);
      }
    }
  }
});

Deno.test("PciTransport does not present what cannot be, and refuses it in words", () => {
  assertThrows(
    () => plugged({ space: "io", msix: { vectors: 2, message: () => {} } }),
    TypeError,
    "Cannot offer MSI-X: its table has to be in memory space",
  );
  for (const vectors of [0, 1, 2049, 2.5]) {
    assertThrows(
      () => plugged({ msix: { vectors, message: () => {} } }),
      RangeError,
      "not 2 to 2048",
    );
  }
  assertThrows(
    () => plugged({ space: "io" }, Array.from({ length: 60 }, () => 8)),
    RangeError,
    "Cannot lay out the registers in I/O space",
  );
  assertEquals(
    plugged({ msix: { vectors: 2048, message: () => {} } }).barSize,
    65536,
  );
});

Deno.test("PciTransport has a BAR that can be sized and moved", () => {
  for (const space of ["io", "memory"] as const) {
    const pci = plugged({ space });
    const io = space === "io";
    assertEquals(pci.barAddress, null);
    pci.configWrite(PCI_BASE_ADDRESS_0, 4, 0xffffffff);
    assertEquals(
      pci.configRead(PCI_BASE_ADDRESS_0, 4),
      io ? 0xffffff01 : 0xfffff000,
    );
    for (let bar = 1; bar < 6; bar++) {
      pci.configWrite(PCI_BASE_ADDRESS_0 + 4 * bar, 4, 0xffffffff);
      assertEquals(pci.configRead(PCI_BASE_ADDRESS_0 + 4 * bar, 4), 0);
    }
    // By bytes, too.
    for (const [i, byte] of [0xff, 0xd0, 0xfe, 0xfe].entries()) {
      pci.configWrite(PCI_BASE_ADDRESS_0 + i, 1, byte);
    }
    assertEquals(pci.barAddress, null);
    pci.configWrite(PCI_COMMAND, 2, io ? PCI_COMMAND_MEMORY : PCI_COMMAND_IO);
    assertEquals(pci.configRead(PCI_COMMAND, 2), 0);
    pci.configWrite(PCI_COMMAND, 2, 0xffff);
    assertEquals(
      pci.configRead(PCI_COMMAND, 2),
      PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE |
        (io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY),
    );
    assertEquals(pci.barAddress, io ? 0xfefed000 : 0xfefed000);
    pci.reset();
    assertEquals(pci.barAddress, null);
    assertEquals(pci.configRead(PCI_BASE_ADDRESS_0, 4), io ? 1 : 0);
  }
});

Deno.test("PciTransport lets nothing be written in configuration space but what is writable", () => {
  const rig = new PciRig({ vectors: 3 });
  const { pci } = rig;
  const before = pci.configSpace();
  const window = structure(pci, VIRTIO_PCI_CAP_PCI_CFG).at;
  const msix = capabilities(pci).find(({ id }) => id === PCI_CAP_ID_MSIX)!.at;
  for (let at = 0; at < 256; at += 4) pci.configWrite(at, 4, 0xffffffff);
  const after = pci.configSpace();
  const changed = [...after.keys()].filter((i) => after[i] !== before[i]);
  const allowed = (at: number) =>
    (at >= PCI_COMMAND && at < PCI_COMMAND + 2) || at === 0x0c ||
    (at >= 0x10 && at < 0x14) || at === PCI_INTERRUPT_LINE ||
    at === window + 4 || (at >= window + 8 && at < window + 20) ||
    at === msix + 3;
  assertEquals(changed.filter((at) => !allowed(at)), []);
  assertEquals(pci.configRead(msix + 2, 2), 0xc002);
  assertEquals(pci.configRead(PCI_INTERRUPT_PIN, 1), 1);
  for (
    const [offset, width] of [[255, 2], [256, 1], [-4, 4], [0, 3], [0.5, 1]]
  ) {
    assertEquals(pci.configRead(offset!, width!), 0);
    pci.configWrite(offset!, width!, 0);
  }
  assertEquals(rig.faults("pci_bad_config_read"), 5);
  assertEquals(rig.faults("pci_bad_config_write"), 5);
});

Deno.test("PciTransport presents the common configuration", () => {
  const rig = new PciRig({ sizes: [8, 16, 4] });
  const { registers, pci } = rig;
  const get = (field: number, width: number) => registers.common(field, width);
  const set = (field: number, width: number, value: number) =>
    registers.setCommon(field, width, value);
  assertEquals(get(VIRTIO_PCI_COMMON_NUMQ, 2), 3);
  assertEquals(get(VIRTIO_PCI_COMMON_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
  // Selectors and accepted features can be read back.
  set(VIRTIO_PCI_COMMON_DFSELECT, 4, 0x89abcdef);
  assertEquals(get(VIRTIO_PCI_COMMON_DFSELECT, 4), 0x89abcdef);
  assertEquals(get(VIRTIO_PCI_COMMON_DF, 4), 0);
  set(VIRTIO_PCI_COMMON_GFSELECT, 4, 1);
  set(VIRTIO_PCI_COMMON_GF, 4, 0x80000001);
  assertEquals(get(VIRTIO_PCI_COMMON_GFSELECT, 4), 1);
  assertEquals(get(VIRTIO_PCI_COMMON_GF, 4), 0x80000001);
  set(VIRTIO_PCI_COMMON_GFSELECT, 4, 0);
  assertEquals(get(VIRTIO_PCI_COMMON_GF, 4), 0);
  set(VIRTIO_PCI_COMMON_GFSELECT, 4, 9);
  assertEquals(get(VIRTIO_PCI_COMMON_GF, 4), 0);
  for (const [index, size] of [8, 16, 4].entries()) {
    set(VIRTIO_PCI_COMMON_Q_SELECT, 2, index);
    assertEquals(get(VIRTIO_PCI_COMMON_Q_SELECT, 2), index);
    assertEquals(get(VIRTIO_PCI_COMMON_Q_SIZE, 2), size);
    assertEquals(get(VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    assertEquals(get(VIRTIO_PCI_COMMON_Q_NOFF, 2), index);
    assertEquals(get(VIRTIO_PCI_COMMON_Q_NDATA, 2), index);
    assertEquals(get(VIRTIO_PCI_COMMON_Q_RESET, 2), 0);
    assertEquals(get(VIRTIO_PCI_COMMON_Q_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
    set(VIRTIO_PCI_COMMON_Q_SIZE, 2, size / 2);
    assertEquals(get(VIRTIO_PCI_COMMON_Q_SIZE, 2), size / 2);
    for (let half = 0; half < 6; half++) {
      const word = 0x80000000 + 256 * index + half;
      set(VIRTIO_PCI_COMMON_Q_DESCLO + 4 * half, 4, word);
      assertEquals(get(VIRTIO_PCI_COMMON_Q_DESCLO + 4 * half, 4), word);
    }
  }
  assertEquals(get(VIRTIO_PCI_COMMON_ADM_Q_IDX, 2), 0);
  assertEquals(get(VIRTIO_PCI_COMMON_ADM_Q_NUM, 2), 0);
  assertEquals(rig.allFaults, []);
  // There is no such queue.
  for (const index of [3, 0xffff]) {
    set(VIRTIO_PCI_COMMON_Q_SELECT, 2, index);
    for (
      const field of [
        VIRTIO_PCI_COMMON_Q_SIZE,
        VIRTIO_PCI_COMMON_Q_ENABLE,
        VIRTIO_PCI_COMMON_Q_NOFF,
        VIRTIO_PCI_COMMON_Q_NDATA,
        VIRTIO_PCI_COMMON_Q_DESCLO,
      ]
    ) {
      assertEquals(get(field, 2), 0);
    }
    set(VIRTIO_PCI_COMMON_Q_SIZE, 2, 4);
    set(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
    set(VIRTIO_PCI_COMMON_Q_RESET, 2, 1);
    set(VIRTIO_PCI_COMMON_Q_MSIX, 2, 0);
    set(VIRTIO_PCI_COMMON_Q_DESCLO, 4, 1);
  }
  assertEquals(rig.faults("pci_queue_refused"), 10);
  // Read-only fields.
  const readOnly = [
    [VIRTIO_PCI_COMMON_DF, 4],
    [VIRTIO_PCI_COMMON_NUMQ, 2],
    [VIRTIO_PCI_COMMON_CFGGENERATION, 1],
    [VIRTIO_PCI_COMMON_Q_NOFF, 2],
    [VIRTIO_PCI_COMMON_Q_NDATA, 2],
    [VIRTIO_PCI_COMMON_ADM_Q_IDX, 2],
    [VIRTIO_PCI_COMMON_ADM_Q_NUM, 2],
  ] as const;
  for (const [field, width] of readOnly) {
    const before = get(field, width);
    set(field, width, 1);
    assertEquals(get(field, width), before);
  }
  assertEquals(rig.faults("pci_write_refused"), readOnly.length);
  assertEquals(pci.read(0, 1), 0xef);
});

Deno.test("PciTransport takes a size that is no power of two for a packed queue only", () => {
  for (const format of FORMATS) {
    const rig = new PciRig({ format });
    rig.negotiate();
    const areas = { ...rig.areas[0]!, size: 5 };
    rig.registers.setupQueue(0, areas);
    const size = format === "packed" ? 5 : 8;
    assertEquals(rig.registers.common(VIRTIO_PCI_COMMON_Q_SIZE, 2), size);
    assertEquals(rig.virtio.queueSetup(0).size, size);
    assertEquals(
      rig.faults("pci_queue_refused"),
      format === "packed" ? 0 : 1,
    );
  }
  const rig = new PciRig();
  rig.negotiate();
  for (const size of [0, 9, 16, 0xffff]) {
    rig.registers.setCommon(VIRTIO_PCI_COMMON_Q_SIZE, 2, size);
  }
  assertEquals(rig.faults("pci_queue_refused"), 4);
  assertEquals(rig.registers.common(VIRTIO_PCI_COMMON_Q_SIZE, 2), 8);
});

Deno.test("PciTransport does not take 0 for queue_enable, nor what is not 1", () => {
  const rig = started("packed");
  for (const value of [0, 2, 0xffff]) {
    rig.registers.setCommon(VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    rig.registers.setCommon(VIRTIO_PCI_COMMON_Q_ENABLE, 2, value);
    rig.registers.setCommon(VIRTIO_PCI_COMMON_Q_RESET, 2, value);
  }
  assertEquals(rig.faults("pci_queue_refused"), 6);
  assert(rig.registers.queueReady(0));
  rig.send(0, "on");
  assertEquals(rig.receive(0), ["on"]);
});

Deno.test("PciTransport says so in queue_enable where a queue cannot be used", () => {
  const cases: [string, Record<string, number>][] = [
    ["outside of memory", { descriptorArea: 0x2000_0000 }],
    ["beyond 2^53", { deviceArea: 2 ** 63 }],
    ["not aligned", { descriptorArea: 0x1000_0008 }],
    ["at the end of memory", { driverArea: 0x1003_fff0 }],
  ];
  for (const [what, change] of cases) {
    const rig = new PciRig();
    rig.negotiate();
    const areas = { ...rig.areas[0]!, ...change };
    assertEquals(rig.registers.setupQueue(0, areas), false, what);
    assertEquals(rig.faults("queue_not_ready"), 1, what);
    assert(rig.registers.setupQueue(0, rig.areas[0]!), what);
  }
  const rig = new PciRig();
  // Before FEATURES_OK the format is open.
  assertEquals(rig.registers.setupQueue(0, rig.areas[0]!), false);
});

Deno.test("PciTransport tells the values of VIRTIO_F_NOTIF_CONFIG_DATA, and takes them in notifications", () => {
  for (const data of [false, true]) {
    const rig = started("packed", {
      notifConfigData: [0x1234, 7],
      notificationData: true,
      accept: [
        VIRTIO_F_NOTIF_CONFIG_DATA,
        ...(data ? [VIRTIO_F_NOTIFICATION_DATA] : []),
      ],
    });
    const kicks: number[] = [];
    rig.model.queueKicked = (index?: number) => kicks.push(index!);
    for (const index of [0, 1]) {
      const name = rig.registers.notificationName(index);
      assertEquals(name, [0x1234, 7][index]);
      const address = structure(rig.pci, VIRTIO_PCI_CAP_NOTIFY_CFG).offset +
        4 * index;
      rig.registers.put(address, data ? 4 : 2, name);
      // The plain index names nobody.
      rig.registers.put(address, data ? 4 : 2, index);
    }
    assertEquals(kicks, [0, 1]);
    assertEquals(rig.faults("notification_unknown"), 2);
  }
});

Deno.test("PciTransport ignores notifications that name no queue, or are too wide or too narrow", () => {
  const rig = started("split");
  const { offset } = structure(rig.pci, VIRTIO_PCI_CAP_NOTIFY_CFG);
  const kicks: number[] = [];
  rig.model.queueKicked = (index?: number) => kicks.push(index!);
  rig.pci.write(offset, 2, 2);
  rig.pci.write(offset + 4, 2, 0xffff);
  assertEquals(rig.faults("notification_unknown"), 2);
  rig.pci.write(offset, 4, 0);
  rig.pci.write(offset + 2, 2, 0);
  rig.pci.write(offset + 8, 2, 0);
  assertEquals(rig.faults("pci_bad_write"), 3);
  rig.pci.write(offset, 1, 0);
  assertEquals(rig.pci.read(offset, 2), 0);
  assertEquals(kicks, []);
  rig.pci.write(offset + 1, 1, 0);
  assertEquals(kicks, [0]);
});

Deno.test("PciTransport clears the ISR status when it is read, and lowers the line", () => {
  const rig = started("split");
  const isr = structure(rig.pci, VIRTIO_PCI_CAP_ISR_CFG).offset;
  const status = () => rig.pci.configRead(PCI_STATUS, 2) & PCI_STATUS_INTERRUPT;
  assertEquals([rig.pci.read(isr, 1), status()], [0, 0]);
  rig.send(0, "x");
  assertEquals(rig.line, false);
  rig.model.process();
  assertEquals([rig.line, rig.pci.interruptLevel], [true, true]);
  assertEquals(status(), PCI_STATUS_INTERRUPT);
  assertEquals(rig.pci.configRead(PCI_COMMAND, 4) >>> 16 & 8, 8);
  assertEquals(rig.pci.configRead(PCI_STATUS, 1) & 8, 8);
  assertEquals(rig.pci.configRead(PCI_STATUS + 1, 1), 0);
  rig.virtio.notifyConfig();
  assertEquals(rig.edges, 1);
  assertEquals(rig.pci.read(isr, 1), 3);
  assertEquals([rig.line, status()], [false, 0]);
  assertEquals(rig.pci.read(isr, 1), 0);
  rig.virtio.notifyConfig();
  assertEquals([rig.edges, rig.pci.read(isr, 1)], [2, 2]);
  assertEquals(rig.allFaults, []);
  rig.pci.write(isr, 1, 0xff);
  assertEquals(rig.pci.read(isr, 2), 0);
  assertEquals(rig.allFaults, ["pci_write_refused", "pci_bad_read"]);
});

Deno.test("PciTransport keeps the line down while the command register disables it", () => {
  const rig = started("packed");
  const command = rig.pci.configRead(PCI_COMMAND, 2);
  rig.pci.configWrite(PCI_COMMAND, 2, command | PCI_COMMAND_INTX_DISABLE);
  rig.virtio.notifyConfig();
  assertEquals(rig.line, false);
  // The status register tells of it nevertheless.
  assertEquals(rig.pci.configRead(PCI_STATUS, 2) & PCI_STATUS_INTERRUPT, 8);
  rig.pci.configWrite(PCI_COMMAND + 1, 1, 0);
  assertEquals(rig.line, true);
  rig.pci.configWrite(PCI_COMMAND, 2, command | PCI_COMMAND_INTX_DISABLE);
  assertEquals(rig.line, false);
  rig.pci.reset();
  assertEquals([rig.line, rig.pci.interruptLevel], [false, false]);
});

for (const format of FORMATS) {
  Deno.test(`PciTransport sends messages where MSI-X is enabled, and moves nothing on the line: ${format}`, () => {
    const rig = started(format, { vectors: 3, eventIdx: false });
    rig.send(0, "one");
    rig.send(1, "two");
    rig.model.process();
    rig.virtio.notifyConfig();
    assertEquals(
      rig.messages.map(({ vector, address, data }) => [vector, address, data]),
      [1, 2, 0].map((vector) => [vector, 0xfee0_0000, MSIX_DATA + vector]),
    );
    assertEquals([rig.line, rig.edges], [false, 0]);
    assertEquals(rig.pci.configRead(PCI_STATUS, 2) & PCI_STATUS_INTERRUPT, 0);
    // A change of the configuration is in the ISR status nevertheless (4.1.4.5.1).
    assertEquals(rig.registers.takeInterrupt(), 2);
    assertEquals(rig.receive(0), ["one"]);
    assertEquals(rig.receive(1), ["two"]);
    assertEquals(rig.allFaults, []);
  });
}

Deno.test("PciTransport sends no message for an event without a vector, and refuses vectors that there are not", () => {
  const rig = started("split", { vectors: 2 });
  const { registers } = rig;
  registers.setCommon(VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
  for (const field of [VIRTIO_PCI_COMMON_MSIX, VIRTIO_PCI_COMMON_Q_MSIX]) {
    for (const vector of [0, 1]) {
      registers.setCommon(field, 2, vector);
      assertEquals(registers.common(field, 2), vector);
    }
    for (const vector of [2, 0x7ff, 0xfffe, VIRTIO_MSI_NO_VECTOR]) {
      registers.setCommon(field, 2, vector);
      assertEquals(registers.common(field, 2), VIRTIO_MSI_NO_VECTOR);
    }
  }
  assertEquals(rig.faults("pci_vector_refused"), 6);
  rig.send(0, "x");
  rig.model.process();
  rig.virtio.notifyConfig();
  assertEquals(rig.messages, []);
  // Vectors are forgotten with the device's state.
  registers.setCommon(VIRTIO_PCI_COMMON_MSIX, 2, 1);
  registers.reset();
  assertEquals(
    registers.common(VIRTIO_PCI_COMMON_MSIX, 2),
    VIRTIO_MSI_NO_VECTOR,
  );
  // Without MSI-X there is no vector at all.
  const without = new PciRig();
  without.registers.setCommon(VIRTIO_PCI_COMMON_MSIX, 2, 0);
  assertEquals(
    without.registers.common(VIRTIO_PCI_COMMON_MSIX, 2),
    VIRTIO_MSI_NO_VECTOR,
  );
});

Deno.test("PciTransport forgets the vector of a queue that is reset", () => {
  const rig = started("packed", {
    vectors: 3,
    ringReset: true,
    accept: [VIRTIO_F_RING_RESET],
  });
  rig.registers.setCommon(VIRTIO_PCI_COMMON_Q_SELECT, 2, 1);
  assertEquals(rig.registers.common(VIRTIO_PCI_COMMON_Q_MSIX, 2), 2);
  assert(rig.registers.resetQueue(1));
  assertEquals(
    rig.registers.common(VIRTIO_PCI_COMMON_Q_MSIX, 2),
    VIRTIO_MSI_NO_VECTOR,
  );
  rig.registers.setCommon(VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
  assertEquals(rig.registers.common(VIRTIO_PCI_COMMON_Q_MSIX, 2), 1);
});

Deno.test("PciTransport keeps a message pending while its vector, all of them or the bus master bit are off", () => {
  const rig = started("split", { vectors: 3 });
  const { pci } = rig;
  const { at, table, pending } = msixOf(pci);
  const command = pci.configRead(PCI_COMMAND, 2);
  const control = pci.configRead(at + 2, 2);
  assertEquals(control & PCI_MSIX_FLAGS_ENABLE, PCI_MSIX_FLAGS_ENABLE);
  const gates: [string, () => void, () => void][] = [
    [
      "the vector",
      () => pci.write(table + 12, 4, 0xffffffff),
      () => pci.write(table + 12, 4, 0xfffffffe),
    ],
    [
      "all",
      () => pci.configWrite(at + 2, 2, control | PCI_MSIX_FLAGS_MASKALL),
      () => pci.configWrite(at + 2, 2, control),
    ],
    [
      "bus master",
      () => pci.configWrite(PCI_COMMAND, 2, command & ~PCI_COMMAND_MASTER),
      () => pci.configWrite(PCI_COMMAND, 2, command),
    ],
  ];
  for (const [what, close, open] of gates) {
    close();
    rig.virtio.notifyConfig();
    rig.virtio.notifyConfig();
    assertEquals(rig.messages, [], what);
    assertEquals([pci.read(pending, 4), pci.read(pending + 4, 4)], [1, 0]);
    pci.write(pending, 4, 0);
    assertEquals(pci.read(pending, 4), 1, what);
    open();
    assertEquals(rig.messages.splice(0).length, 1, what);
    assertEquals(pci.read(pending, 4), 0, what);
  }
  // What a guest writes to the table comes back, but for bits that are not there.
  pci.write(table, 4, 0xffffffff);
  assertEquals(pci.read(table, 4), 0xfffffffc);
  pci.write(table + 9, 1, 0xab);
  assertEquals(pci.read(table + 8, 4), 0xab00 | MSIX_DATA & 0xff);
});

Deno.test("PciTransport has a message pending on another machine that was pending on the first", () => {
  const rig = started("packed", { vectors: 3 });
  const { table, pending } = msixOf(rig.pci);
  rig.pci.write(table + 12, 4, 1);
  rig.virtio.notifyConfig();
  rig.migrate();
  // The driver is told to look at its queues; the configuration's vector is masked.
  assertEquals(rig.messages.splice(0).map(({ vector }) => vector), [1, 2]);
  assertEquals(rig.pci.read(pending, 4), 1);
  rig.pci.write(table + 12, 4, 0);
  assertEquals(rig.messages.map(({ vector }) => vector), [0]);
});

function msixOf(
  pci: PciTransport,
): { at: number; table: number; pending: number } {
  const { at } = capabilities(pci).find(({ id }) => id === PCI_CAP_ID_MSIX)!;
  return {
    at,
    table: pci.configRead(at + 4, 4),
    pending: pci.configRead(at + 8, 4),
  };
}

Deno.test("PciTransport reads and writes through the window as cap.bar, cap.offset and cap.length say", () => {
  const rig = started("split");
  const { pci } = rig;
  const { at, offset: none, length: no } = structure(
    pci,
    VIRTIO_PCI_CAP_PCI_CFG,
  );
  assertEquals([none, no], [0, 0]);
  const data = at + VIRTIO_PCI_CFG_CAP_DATA;
  const aim = (offset: number, length: number, bar = 0) => {
    pci.configWrite(at + VIRTIO_PCI_CAP_BAR, 1, bar);
    pci.configWrite(at + VIRTIO_PCI_CAP_OFFSET, 4, offset);
    pci.configWrite(at + VIRTIO_PCI_CAP_LENGTH, 4, length);
  };
  const { offset } = structure(pci, VIRTIO_PCI_CAP_DEVICE_CFG);
  aim(offset + 4, 4);
  assertEquals(pci.configRead(data, 4), 0xa7a6a5a4);
  aim(offset + 2, 2);
  assertEquals(pci.configRead(data, 2), 0xa3a2);
  aim(offset + 7, 1);
  assertEquals(pci.configRead(data, 1), 0xa7);
  aim(offset + 4, 4);
  pci.configWrite(data, 4, 0x44332211);
  aim(offset + 8, 2);
  pci.configWrite(data, 4, 0xffff6655);
  // An emulator may split accesses: the last byte that counts is what writes.
  aim(offset, 2);
  pci.configWrite(data, 1, 0x77);
  assertEquals(rig.model.config[0], 0xa0);
  pci.configWrite(data + 1, 1, 0x88);
  assertEquals(
    [...rig.model.config.subarray(0, 10)],
    [0x77, 0x88, 0xa2, 0xa3, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66],
  );
  assertEquals([pci.configRead(data, 1), pci.configRead(data + 1, 1)], [
    0x77,
    0x88,
  ]);
  // Reading the ISR status has its effect here, too.
  rig.virtio.notifyConfig();
  aim(structure(pci, VIRTIO_PCI_CAP_ISR_CFG).offset, 1);
  assertEquals([pci.configRead(data, 1), rig.line], [2, false]);
  assertEquals(rig.allFaults, []);
  const bad = [[0, 3, 0], [0, 8, 0], [0, 0, 0], [2, 4, 0], [0, 4, 1]] as const;
  for (const [offset, length, bar] of bad) {
    aim(offset, length, bar);
    assertEquals(pci.configRead(data, 4), 0);
  }
  aim(0xfffffffc, 4);
  assertEquals(pci.configRead(data, 4), 0);
  pci.configWrite(data, 4, 1);
  assertEquals(rig.faults("pci_window_refused"), bad.length + 2);
});

Deno.test("PciTransport takes a field in parts, in any order, and drops one that another interrupts", () => {
  const rig = new PciRig();
  const { pci } = rig;
  const select = () => pci.read(VIRTIO_PCI_COMMON_DFSELECT, 4);
  for (const order of [[0, 1, 2, 3], [3, 1, 0, 2]]) {
    pci.write(VIRTIO_PCI_COMMON_DFSELECT, 4, 0);
    for (const [i, at] of order.entries()) {
      assertEquals(select(), 0);
      pci.write(VIRTIO_PCI_COMMON_DFSELECT + at, 1, 0x81 + at);
      assertEquals(select(), i === 3 ? 0x84838281 : 0);
    }
  }
  pci.write(VIRTIO_PCI_COMMON_DFSELECT + 1, 2, 0xbbaa);
  pci.write(VIRTIO_PCI_COMMON_DFSELECT, 1, 0x99);
  pci.write(VIRTIO_PCI_COMMON_DFSELECT + 1, 1, 0x10);
  pci.write(VIRTIO_PCI_COMMON_DFSELECT + 3, 1, 0xcc);
  assertEquals(select(), 0xccbb1099);
  // Half a field, then another one.
  pci.write(VIRTIO_PCI_COMMON_Q_SELECT, 1, 1);
  pci.write(VIRTIO_PCI_COMMON_DFSELECT, 4, 5);
  pci.write(VIRTIO_PCI_COMMON_Q_SELECT + 1, 1, 0);
  assertEquals(pci.read(VIRTIO_PCI_COMMON_Q_SELECT, 2), 0);
  pci.write(VIRTIO_PCI_COMMON_Q_SELECT, 1, 1);
  assertEquals(pci.read(VIRTIO_PCI_COMMON_Q_SELECT, 2), 1);
  assertEquals(rig.allFaults, []);
  // Over the end of a field, or in no way at all.
  const bad = [
    [VIRTIO_PCI_COMMON_Q_SELECT, 4],
    [VIRTIO_PCI_COMMON_STATUS, 2],
    [VIRTIO_PCI_COMMON_DFSELECT + 3, 2],
    [0x3f, 4],
    [0xff8, 4],
    [0x1000, 1],
    [-1, 1],
    [0, 8],
    [0, 3],
    [1.5, 1],
  ] as const;
  for (const [offset, width] of bad) pci.write(offset, width, 0);
  assertEquals(rig.faults("pci_bad_write"), bad.length);
  assertEquals(pci.read(VIRTIO_PCI_COMMON_Q_SELECT, 4), 0x80001);
  for (const [offset, width] of bad.slice(3)) {
    assertEquals(pci.read(offset, width), 0);
  }
  assertEquals(rig.faults("pci_bad_read"), bad.length - 3);
});

Deno.test("PciTransport reads configuration of the device by bytes, half words and words", () => {
  const rig = new PciRig();
  const { offset } = structure(rig.pci, VIRTIO_PCI_CAP_DEVICE_CFG);
  const at = (where: number, width: number) =>
    rig.pci.read(offset + where, width);
  assertEquals([at(0, 1), at(2, 2), at(4, 4)], [0xa0, 0xa3a2, 0xa7a6a5a4]);
  rig.pci.write(offset + 1, 1, 0x155);
  rig.pci.write(offset + 8, 4, 0x04030201);
  assertEquals(rig.model.events.slice(-2), [
    "config 1: 85",
    "config 8: 1,2,3,4",
  ]);
  assertEquals(rig.allFaults, []);
});

Deno.test("PciTransport shows a change of the configuration in 8 bits, however many there were", () => {
  for (const changes of [1, 255, 256, 257, 512]) {
    const rig = started("split");
    rig.registers.readConfig(12);
    const before = rig.registers.configGeneration;
    for (let i = 0; i < changes; i++) rig.virtio.notifyConfig();
    // The driver reads the second half of the configuration after the change.
    assertEquals(rig.registers.readConfigField(4, 4), 0xa7a6a5a4);
    assert(rig.registers.configGeneration !== before, `${changes}`);
    const after = rig.registers.configGeneration;
    rig.registers.readConfig(12);
    assertEquals(rig.registers.configGeneration, after);
  }
});

Deno.test("PciTransport.restore() refuses a function that presents itself otherwise, and impossible contents", () => {
  const rig = started("split", { vectors: 3 });
  const good = rig.pci.save();
  const { version, checksum: _checksum, ...content } = good;
  const changed = (change: object) =>
    seal(version, { ...structuredClone(content), ...change });
  const config = (at: number, byte: number) => {
    const bytes = bytesOfBase64(good.config);
    bytes[at] = byte;
    return changed({ config: base64(bytes) });
  };
  const cases: [string, string, unknown][] = [
    ["MISMATCH", "another vendor", config(0, 0)],
    ["MISMATCH", "another BAR", config(PCI_BASE_ADDRESS_0, 1)],
    ["MISMATCH", "too short", changed({ config: base64(new Uint8Array(9)) })],
    ["CONTENT", "no base64", changed({ config: "!" })],
    [
      "CONTENT",
      "a vector that there is not",
      changed({ common: { ...content.common, configVector: 3 } }),
    ],
    [
      "CONTENT",
      "vectors of too few queues",
      changed({ common: { ...content.common, queueVectors: [0] } }),
    ],
    ["CONTENT", "no table", changed({ msix: { table: [], pending: [] } })],
    [
      "CONTENT",
      "an address that is not aligned",
      changed({
        msix: { ...content.msix, table: content.msix.table.map(() => 1) },
      }),
    ],
    [
      "CONTENT",
      "pending that there is not",
      changed({ msix: { ...content.msix, pending: [8, 0, 0, 0, 0, 0, 0, 0] } }),
    ],
    [
      "CONTENT",
      "no part",
      changed({ parts: { start: -2, bytes: 0, value: 0 } }),
    ],
  ];
  const other = new PciRig({ vectors: 3 });
  const before = other.pci.save();
  for (const [code, what, snapshot] of cases) {
    const error = assertThrows(
      () => other.pci.restore(snapshot),
      SnapshotError,
      undefined,
      what,
    );
    assertEquals((error as SnapshotError).code, code, what);
    assertEquals(other.pci.save(), before, what);
  }
  other.pci.restore(config(PCI_INTERRUPT_LINE, 5));
  assertEquals(other.pci.configRead(PCI_INTERRUPT_LINE, 1), 5);
  // Of a function without MSI-X, though all else is the same.
  const bare = new PciRig();
  assertThrows(() => bare.pci.restore(good), SnapshotError, "otherwise");
});

Deno.test("PciTransport moves between any two accesses with messages in place of the line", () => {
  for (const format of FORMATS) {
    const live = (moves: (access: number) => boolean): [string[], number] => {
      const rig = new PciRig({ format, vectors: 3, access: "bytes" });
      let access = 0;
      rig.enter = () => {
        if (moves(access++)) rig.migrate();
      };
      rig.registers.probe();
      rig.start();
      const seen: string[] = [];
      for (let i = 0; i < 4; i++) {
        rig.send(i % 2, `text ${i}`);
        seen.push(...rig.receive(i % 2));
      }
      // A move brings messages that are one too many, but none is lost.
      for (const { vector, data } of rig.messages) {
        assertEquals(data, MSIX_DATA + vector);
      }
      for (const vector of [1, 2]) {
        assert(rig.messages.some((message) => message.vector === vector));
      }
      assertEquals([rig.line, rig.edges, rig.allFaults], [false, 0, []]);
      return [seen, access];
    };
    const [expected, accesses] = live(() => false);
    for (let at = 0; at < accesses; at += 3) {
      assertEquals(live((access) => access === at)[0], expected, `${at}`);
    }
  }
});

/** An access of a guest, to the BAR or to configuration space. */
type Access = {
  config: boolean;
  write: boolean;
  offset: number;
  width: number;
  value: number;
};

const interesting = fc.oneof(
  fc.constantFrom(0, 1, 2, 3, 4, 7, 8, 11, 15, 16, 31, 64, 128, 255, 0xffff),
  fc.nat(0xffff),
  fc.nat(0x4100).map((n) => 0x1000_0000 + 16 * n),
  fc.nat(0xffffffff),
);
const width = fc.oneof(
  { weight: 12, arbitrary: fc.constantFrom(1, 2, 4) },
  { weight: 1, arbitrary: fc.nat(9) },
);
const access: fc.Arbitrary<Access> = fc.record({
  config: fc.boolean(),
  write: fc.boolean(),
  offset: fc.oneof(
    fc.nat(0x120),
    fc.nat(0x40).map((n) => 4 * n),
    // The common configuration's fields at their places, as a driver comes.
    fc.constantFrom(0x14, 0x16, 0x18, 0x1a, 0x1c, 0x3a, 0x0c, 0x20, 0x28, 0x30),
  ),
  width,
  value: interesting,
});
/** Or a driver that knows what it does, a move, work, and rings that are spoilt. */
const step = fc.oneof(
  { weight: 40, arbitrary: access },
  {
    weight: 2,
    arbitrary: fc.constantFrom("start", "move", "work", "hold", "machine"),
  },
  { weight: 1, arbitrary: fc.nat(0x3ff) },
);

for (
  const [what, options] of [
    ["queue state", { queueState: true, suspend: true, vectors: 3 }],
    ["queue reset", { ringReset: true, notificationData: true, suspend: true }],
    ["I/O space", { space: "io", notifConfigData: [3, 4], written: true }],
  ] as [string, PciRigOptions][]
) {
  Deno.test(`PciTransport throws for nothing that a guest does to its registers: ${what}`, () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...FORMATS),
        fc.boolean(),
        fc.array(step, { maxLength: 300, size: "max" }),
        (format, accept, steps) => {
          const rig = new PciRig({
            ...options,
            format,
            accept: accept
              ? [
                ...(options.queueState ? [VIRTIO_F_QUEUE_STATE, 43] : []),
                ...(options.ringReset ? [VIRTIO_F_RING_RESET, 38, 43] : []),
                ...(options.notifConfigData ? [39] : []),
              ]
              : [],
          });
          for (const step of steps) {
            take(rig, step);
            check(rig);
          }
          recover(rig, options);
        },
      ),
      { seed: 20, numRuns: 40 },
    );
  });
}

function take(rig: PciRig, step: Access | string | number): void {
  if (typeof step === "number") {
    rig.memory.bytes(0x1000_0000, 0x400)[step] = step >> 2;
    return;
  }
  if (typeof step === "string") {
    const { format } = rig.queues[0]!;
    if (step === "hold") rig.model.hold = !rig.model.hold;
    else if (step === "work") rig.work();
    else if (step === "move") rig.migrate();
    else if (step === "machine") rig.pci.reset();
    else {
      rig.registers.probe();
      rig.registers.reset();
      rig.registers.accept(rig.features);
      for (const [index, areas] of rig.areas.entries()) {
        if (!rig.registers.setupQueue(index, areas)) continue;
        if (rig.options.queueState) {
          rig.registers.setQueueState(index, initialWords(format));
        }
      }
      rig.registers.driverOk();
    }
    return;
  }
  const { pci } = rig;
  const { config, write, offset, width, value } = step;
  const before = rig.messages.length;
  const muteBefore = muted(pci);
  if (write && config) {
    pci.configWrite(offset, width, value);
  } else if (write) {
    pci.write(offset, width, value);
  } else {
    const read = config
      ? pci.configRead(offset, width)
      : pci.read(offset, width);
    assert(Number.isInteger(read) && read >= 0, `${read}`);
    assert(read < 2 ** (8 * (width > 4 ? 4 : width)), `${read} of ${width}`);
  }
  if (muteBefore && muted(pci)) assertEquals(rig.messages.length, before);
}

/** True where the function must not send messages. */
function muted(pci: PciTransport): boolean {
  const found = capabilities(pci).find(({ id }) => id === PCI_CAP_ID_MSIX);
  if (found === undefined) return true;
  const control = pci.configRead(found.at + 2, 2);
  return (control & PCI_MSIX_FLAGS_ENABLE) === 0 ||
    (control & PCI_MSIX_FLAGS_MASKALL) !== 0 ||
    (pci.configRead(PCI_COMMAND, 2) & PCI_COMMAND_MASTER) === 0;
}

/** What holds whatever the guest has done. */
function check(rig: PciRig): void {
  const { pci } = rig;
  assertEquals(rig.line, pci.interruptLevel);
  const command = pci.configRead(PCI_COMMAND, 2);
  if ((command & PCI_COMMAND_INTX_DISABLE) !== 0) assertEquals(rig.line, false);
  assertEquals(pci.configRead(PCI_VENDOR_ID, 2), 0x1af4);
  const msix = capabilities(pci).find(({ id }) => id === PCI_CAP_ID_MSIX);
  if (
    msix !== undefined &&
    (pci.configRead(msix.at + 2, 2) & PCI_MSIX_FLAGS_ENABLE) !== 0
  ) {
    assertEquals(rig.line, false);
  }
  // No status bits but those that there are.
  assertEquals(rig.virtio.status & ~0xdf, 0);
}

/** Whatever was done, a reset and a proper start make a device that works. */
function recover(rig: PciRig, options: PciRigOptions): void {
  rig.model.hold = false;
  rig.pci.reset();
  const good = new PciRig({ ...options, accept: [] });
  rig.memory = good.memory;
  rig.registers.probe();
  rig.registers.reset();
  assert(rig.registers.accept(good.features));
  for (const [index, areas] of good.areas.entries()) {
    assert(rig.registers.setupQueue(index, areas));
  }
  rig.registers.driverOk();
  good.send(1, "well");
  rig.model.process();
  assertEquals(good.receive(1), ["well"]);
}

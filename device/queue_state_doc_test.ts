import { assert, assertEquals } from "@std/assert";
import { initialWords, MmioRig } from "../props/guest/mmio_rig.ts";
import { VIRTIO_F_QUEUE_STATE } from "./transport_features.ts";

const DOCUMENT = new URL("../docs/queue_state.md", import.meta.url);
const BEGIN = "<!-- walk: made by device/queue_state_doc_test.ts -->\n\n";
const END = "\n<!-- end of walk -->";

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, "0");
}

/** What the two bits of a descriptor say; all zero is a descriptor that nobody has written. */
function meaning(bytes: Uint8Array): string {
  const flags = bytes[14]! | bytes[15]! << 8;
  const avail = flags >> 7 & 1;
  const used = flags >> 15 & 1;
  const id = bytes[12]! | bytes[13]! << 8;
  if (bytes.every((byte) => byte === 0)) return "untouched";
  return avail === used
    ? `used, wrap ${used}, id ${id}`
    : `available, wrap ${avail}, id ${id}`;
}

/** The descriptor ring, a line for each descriptor: le64 addr, le32 len, le16 id, le16 flags. */
function dump(rig: MmioRig): string {
  const { size, descriptorArea } = rig.areas[0]!;
  const lines: string[] = [];
  for (let slot = 0; slot < size; slot++) {
    const bytes = rig.memory.bytes(descriptorArea + 16 * slot, 16);
    const cells = [...bytes].map((byte) => hex(byte, 2));
    const groups = [[0, 8], [8, 12], [12, 14], [14, 16]].map(([from, to]) =>
      cells.slice(from, to).join(" ")
    );
    lines.push(`  ${slot}  ${groups.join("  ")}  ${meaning(bytes)}`);
  }
  return lines.join("\n");
}

function position(word: number): string {
  return `0x${hex(word, 4)}: index ${word & 0x7fff}, wrap ${word >> 15}`;
}

/** A packed ring of eight descriptors through save, reset and restore, by registers. */
function walk(): string {
  const rig = new MmioRig({
    format: "packed",
    sizes: [8],
    eventIdx: false,
    queueState: true,
    accept: [VIRTIO_F_QUEUE_STATE],
  });
  const text: string[] = [];
  rig.start([initialWords("packed")]);
  text.push("1. A ring of 8. Nothing has happened.", dump(rig));
  for (let i = 0; i < 5; i++) {
    rig.send(0, `text ${i}`);
    assertEquals(rig.receive(0), [`text ${i}`]);
  }
  text.push(
    "2. Five buffers of two descriptors came and went: one lap, and two descriptors of the next.",
    dump(rig),
  );
  rig.model.hold = true;
  rig.model.clings = true;
  rig.send(0, "text 5");
  rig.model.process();
  assertEquals(rig.model.held.length, 1);
  rig.model.process = () => {};
  rig.send(0, "text 6");
  text.push(
    "3. The driver makes two more available. The device has fetched the first of them and not used it.",
    dump(rig),
  );
  rig.registers.reset();
  const before = dump(rig);
  const words = rig.registers.queueState(0)!;
  assert(words !== null);
  text.push(
    "4. Status <- 0. The ring is left alone; the device tells where it stood, the fetched buffer taken back.",
    `  QueueAvailState -> ${position(words.available)}\n` +
      `  QueueUsedState  -> ${position(words.used)}`,
  );
  rig.negotiate();
  assertEquals(rig.registers.queueState(0), null);
  assertEquals(dump(rig), before);
  text.push(
    "5. Status <- ACKNOWLEDGE, DRIVER, features, FEATURES_OK. The device has forgotten.",
    "  QueueAvailState -> 0xffffffff\n  QueueUsedState  -> 0xffffffff",
  );
  rig.setUp([words]);
  text.push(
    "6. The queue is set up and made ready, and its state set.",
    `  QueueAvailState <- 0x${hex(words.available, 4)}\n` +
      `  QueueUsedState  <- 0x${hex(words.used, 4)}`,
  );
  Reflect.deleteProperty(rig.model, "process");
  rig.model.hold = false;
  rig.registers.driverOk();
  rig.model.process();
  text.push(
    "7. Status <- DRIVER_OK. The device looks without a kick, and answers both.",
    dump(rig),
  );
  assertEquals(rig.receive(0), ["text 5", "text 6"]);
  rig.registers.reset();
  const after = rig.registers.queueState(0)!;
  text.push(
    "8. Another reset tells that it has gone on.",
    `  QueueAvailState -> ${position(after.available)}\n` +
      `  QueueUsedState  -> ${position(after.used)}`,
  );
  assertEquals(rig.allFaults, ["mmio_state_refused"]);
  return "```text\n" + text.join("\n\n") + "\n```\n";
}

Deno.test("docs/queue_state.md shows a packed ring through save, reset and restore as it is", async () => {
  const document = await Deno.readTextFile(DOCUMENT);
  const from = document.indexOf(BEGIN) + BEGIN.length;
  const to = document.indexOf(END);
  assert(from >= BEGIN.length && to > from, "the document has lost its marks");
  const made = walk();
  if (Deno.env.get("UPDATE_DOCS") === "1") {
    await Deno.writeTextFile(
      DOCUMENT,
      document.slice(0, from) + made + document.slice(to),
    );
    return;
  }
  assertEquals(
    document.slice(from, to),
    made,
    "run this test with UPDATE_DOCS=1 where the change is meant",
  );
});

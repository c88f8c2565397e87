import { assert, assertEquals } from "@std/assert";
import { GuestMemory } from "../../ring/memory.ts";
import { BufferList } from "../../ring/queue.ts";
import { Guest, RINGS } from "./_fixture.ts";

/** A guest with one connection, for which two receive buffers are fetched at a time. */
function guestWithPairs(ring: typeof RINGS[number]): Guest {
  const guest = new Guest(ring, {}, 100);
  guest.post(2);
  const stream = guest.connect();
  stream.say(...Array(56).fill(1));
  assertEquals(guest.run().length, 1);
  return guest;
}

for (const ring of RINGS) {
  Deno.test(`RxWriter can give back all that it holds, whatever unusable buffers lie between (${ring})`, () => {
    const guest = guestWithPairs(ring);
    const stream = guest.host.streams[0]!;
    guest.post(1);
    guest.rxBytes = 44;
    guest.post(1);
    guest.rxBytes = 100;
    guest.post(2);
    stream.events!.hostReadable();
    assertEquals(guest.run(), []);
    guest.virtio.setMemory(guest.memory);
    assertEquals([guest.receive(), guest.empty], [[], 0], "none is used up");
    for (const byte of [1, 2]) {
      stream.say(byte);
      assertEquals(guest.run().map(({ payload }) => payload), [[byte]]);
    }
    assertEquals([guest.empty, guest.count("rx_buffer_unusable")], [1, 1]);

    guest.post(1);
    guest.rxBytes = 44;
    guest.post(1);
    guest.rxBytes = 100;
    guest.post(2);
    stream.events!.hostReadable();
    assertEquals(guest.run(), []);
    for (let index = 0; index < 3; index++) {
      const state = guest.virtio.stopQueue(index)!;
      assertEquals(state.inFlight, []);
      guest.virtio.startQueue(index, state);
      guest.virtio.enableQueue(index, true);
    }
    for (const byte of [3, 4, 5, 6]) {
      stream.say(byte);
      assertEquals(guest.run().map(({ payload }) => payload), [[byte]]);
    }
    assertEquals(guest.empty, 2);
    assertEquals(guest.queues[0]!.inFlight, 0, "every buffer came back once");
  });

  Deno.test(`RxWriter returns a buffer in more pieces than a read takes (${ring})`, () => {
    const guest = new Guest(ring);
    guest.post(1);
    guest.connect();
    // The upper half of memory in regions of 16 bytes: a buffer there is one segment for each.
    const { buffer } = guest.memory.regions[0]!.bytes;
    const half = 1 << 20;
    const regions = [{ guestAddress: 0, size: half, buffer }];
    for (let i = 0; i < 1100; i++) {
      const guestAddress = half + i * 16;
      regions.push({ guestAddress, size: 16, buffer: new ArrayBuffer(16) });
    }
    guest.virtio.setMemory(new GuestMemory(regions));
    const rx = guest.queues[0]!;
    const pieces = rx.add(new BufferList().addWritable(half, 1100 * 16));
    const plain = rx.add(new BufferList().addWritable(0x10000, 100));
    rx.publish();
    guest.virtio.kick(0);
    guest.host.streams[0]!.say(7);
    for (let i = 0; guest.vsock.process(); i++) {
      assert(i < 100, "the device spins");
    }
    assertEquals([rx.reclaim(), rx.usedLength], [pieces, 0]);
    assertEquals([rx.reclaim(), rx.usedLength], [plain, 45]);
    assertEquals(guest.count("rx_buffer_unusable"), 1);
  });
}

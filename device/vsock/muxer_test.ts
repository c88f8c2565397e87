import { assertEquals, assertLessOrEqual } from "@std/assert";
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import { Diagnostics } from "../diagnostics.ts";
import {
  CID,
  Guest,
  Host,
  ops,
  packetBytes,
  REQUEST,
  RST,
} from "./_fixture.ts";
import type { ConnectAnswer } from "./host.ts";
import { Muxer } from "./muxer.ts";

Deno.test("Muxer keeps no more ended connections than it can have", () => {
  const buffer = new ArrayBuffer(4096);
  const memory = new GuestMemory([{ guestAddress: 0, size: 4096, buffer }]);
  const host = new Host();
  const maxConnections = 8;
  const muxer = new Muxer(memory, {
    guestCid: CID,
    host,
    diagnostics: new Diagnostics(),
    bufAlloc: 4096,
    maxConnections,
    now: () => 0,
  });
  const chain = new Chain(memory);
  const receive = (op: number, srcPort: number, dstPort: number): void => {
    memory.bytes(0, 44).set(packetBytes({ op, srcPort, dstPort }, []));
    chain.clear();
    chain.append(0, 44, false);
    muxer.receive(chain);
  };
  receive(REQUEST, 5, 1234);
  for (let i = 0; i < 1000; i++) {
    // One that is accepted and one that is refused, neither of which hears of it.
    receive(REQUEST, 6, 1234);
    receive(RST, 6, 1234);
    receive(REQUEST, 6, 99);
    receive(RST, 6, 99);
    assertEquals(muxer.connectionCount, 1);
    assertLessOrEqual(muxer.waiting, 2 * maxConnections);
  }
  receive(RST, 5, 1234);
  assertEquals([muxer.connectionCount, host.streams.length], [0, 1001]);
});

Deno.test("Muxer.abandonAll() takes a connection that is made in answer to it", () => {
  const guest = new Guest("split");
  guest.post();
  const reasons: string[] = [];
  const answer: ConnectAnswer = {
    accepted: () => {
      throw new Error("accepted");
    },
    refused: (reason) => {
      if (reasons.push(reason) === 1) guest.vsock.connect(81, answer);
    },
  };
  guest.vsock.connect(80, answer);
  assertEquals(ops(guest.run()), [REQUEST]);
  guest.vsock.transportReset();
  const again = guest.run();
  assertEquals([again.length, again[0]?.op, again[0]?.dstPort], [
    1,
    REQUEST,
    81,
  ]);
  assertEquals(reasons, ["the guest is gone"]);
});

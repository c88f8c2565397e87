/**
 * What a socket device promises, each promise a property of its own.
 *
 * @module
 */

import type { NamedProperty } from "./queue_properties.ts";
import {
  BUFFER_SETUPS,
  type BufferSetup,
  type BufferStep,
  bufferSteps,
  BufferWorld,
} from "./buffer_world.ts";
import { judgingOnly } from "./judging.ts";
import {
  PIPE_SETUPS,
  type PipeSetup,
  type PipeStep,
  pipeSteps,
  PipeWorld,
} from "./pipe_world.ts";
import {
  type MessageStep,
  messageSteps,
  MessageWorld,
} from "./message_world.ts";
import { scriptProperty } from "./script_property.ts";
import {
  STREAM_SETUPS,
  streamSteps,
  type StreamTheme,
  StreamWorld,
  type VsockStep,
} from "./vsock_stream_world.ts";
import type { VsockSetup } from "./vsock_rig.ts";
import {
  SWITCH_SETUPS,
  type SwitchSetup,
  type SwitchStep,
  switchSteps,
  SwitchWorld,
} from "./switch_world.ts";
import {
  WIRE_SETUPS,
  type WireStep,
  wireSteps,
  type WireTheme,
  WireWorld,
} from "./wire_world.ts";

/**
 * A promise about streams.
 *
 * @param invariants Those that are judged.
 */
function streams(
  name: string,
  theme: StreamTheme,
  invariants: readonly string[],
): NamedProperty {
  return scriptProperty<VsockSetup, VsockStep>({
    name: `vsock/${name}`,
    setups: STREAM_SETUPS,
    steps: streamSteps(theme),
    maxSteps: 50,
    make: (setup) => judgingOnly(invariants, new StreamWorld(setup)),
  });
}

/** A promise about packets. */
function packets(
  name: string,
  theme: WireTheme,
  invariants: readonly string[],
): NamedProperty {
  return scriptProperty<VsockSetup, WireStep>({
    name: `vsock/${name}`,
    setups: WIRE_SETUPS,
    steps: wireSteps(theme),
    maxSteps: 60,
    make: (setup) => judgingOnly(invariants, new WireWorld(setup)),
  });
}

/** Invariants of streams, of which a snapshot must keep every one. */
const STREAM_INVARIANTS: readonly string[] = [
  "bytes-in-order",
  "credit",
  "every-connection-ends",
  "progress",
  "rst-rules",
  "packets",
  "snapshot",
];

/** A promise about seqpackets. */
function messages(
  name: string,
  invariants: readonly string[],
): NamedProperty {
  return scriptProperty<VsockSetup, MessageStep>({
    name: `vsock/${name}`,
    setups: STREAM_SETUPS,
    steps: messageSteps(),
    maxSteps: 60,
    make: (setup) => judgingOnly(invariants, new MessageWorld(setup)),
  });
}

/** What guests may expect of each other. */
const SWITCH_PROPERTY: NamedProperty = scriptProperty<SwitchSetup, SwitchStep>({
  name: "vsock/guest-to-guest",
  setups: SWITCH_SETUPS,
  steps: switchSteps(),
  maxSteps: 50,
  make: (setup) => new SwitchWorld(setup),
});

/** What the devices of two guests may expect of the switch between them. */
const PIPE_PROPERTY: NamedProperty = scriptProperty<PipeSetup, PipeStep>({
  name: "vsock/pipes",
  setups: PIPE_SETUPS,
  steps: pipeSteps(),
  maxSteps: 60,
  make: (setup) => new PipeWorld(setup),
});

/** Buffers of any shape that a guest may offer. */
const BUFFER_PROPERTY: NamedProperty = scriptProperty<BufferSetup, BufferStep>({
  name: "vsock/buffers",
  setups: BUFFER_SETUPS,
  steps: bufferSteps(),
  maxSteps: 40,
  make: (setup) => new BufferWorld(setup),
});

/** All of them. */
export const VSOCK_PROPERTIES: readonly NamedProperty[] = [
  streams("bytes-in-order", "traffic", ["bytes-in-order", "packets"]),
  streams("every-connection-ends", "ends", ["every-connection-ends"]),
  streams("progress", "traffic", ["progress"]),
  streams("late-packets", "resets", ["rst-rules", "credit"]),
  packets("credit", "credit", ["credit", "progress", "bytes-in-order"]),
  packets("rst-rules", "packets", ["rst-rules", "packets", "misuse"]),
  packets("memory-bounded", "floods", [
    "memory-bounded",
    "every-connection-ends",
    "misuse",
    "snapshot",
  ]),
  messages("seqpacket-messages", [
    "seqpacket-messages",
    ...STREAM_INVARIANTS,
  ]),
  SWITCH_PROPERTY,
  PIPE_PROPERTY,
  BUFFER_PROPERTY,
  streams("snapshot", "restores", STREAM_INVARIANTS),
];

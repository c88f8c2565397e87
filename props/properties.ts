/**
 * All properties that a campaign runs.
 *
 * @module
 */

import { FACILITY_PROPERTY } from "./facility_properties.ts";
import { HOSTILE_CHAIN_PROPERTY } from "./hostile_chain_properties.ts";
import { HOSTILE_PROPERTIES } from "./hostile_properties.ts";
import { HOSTILE_DEVICE_PROPERTY } from "./hostile_device_properties.ts";
import { HOSTILE_STATE_PROPERTY } from "./hostile_state_properties.ts";
import { INFLIGHT_PROPERTIES } from "./inflight_properties.ts";
import { MISUSE_PROPERTY } from "./misuse_properties.ts";
import {
  INVARIANT_PROPERTIES,
  LARGE_QUEUE_PROPERTY,
  type NamedProperty,
  QUEUE_PROPERTIES,
} from "./queue_properties.ts";
import { FORMATS_PROPERTY, TWIN_PROPERTIES } from "./twin_properties.ts";
import { VSOCK_PROPERTIES } from "./vsock_properties.ts";

/** In the order in which they are run. */
export const PROPERTIES: readonly NamedProperty[] = [
  ...QUEUE_PROPERTIES,
  ...INVARIANT_PROPERTIES,
  ...TWIN_PROPERTIES,
  FORMATS_PROPERTY,
  ...INFLIGHT_PROPERTIES,
  LARGE_QUEUE_PROPERTY,
  HOSTILE_CHAIN_PROPERTY,
  HOSTILE_DEVICE_PROPERTY,
  HOSTILE_STATE_PROPERTY,
  MISUSE_PROPERTY,
  FACILITY_PROPERTY,
  ...HOSTILE_PROPERTIES,
  ...VSOCK_PROPERTIES,
];

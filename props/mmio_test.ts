import { MmioTransport } from "../device/mmio.ts";
import { MmioDriver } from "./guest/mmio_driver.ts";
import { testStreams } from "./transport_streams.ts";

testStreams(
  Deno.test,
  "MmioTransport",
  (virtio, emulator) => new MmioTransport(virtio, emulator),
  (transport) =>
    new MmioDriver({
      read: (offset, width) => transport().read(offset, width),
      write: (offset, width, value) => transport().write(offset, width, value),
    }),
);

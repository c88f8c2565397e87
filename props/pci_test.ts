import { PciTransport } from "../device/pci.ts";
import { PciDriver, type PciDriverOptions } from "./guest/pci_driver.ts";
import { type Drive, testStreams } from "./transport_streams.ts";

const drive = (options: PciDriverOptions): Drive<PciTransport> => (pci) =>
  new PciDriver({
    read: (offset, width) => pci().read(offset, width),
    write: (offset, width, value) => pci().write(offset, width, value),
    configRead: (offset, width) => pci().configRead(offset, width),
    configWrite: (offset, width, value) =>
      pci().configWrite(offset, width, value),
  }, options);

testStreams(
  Deno.test,
  "PciTransport",
  (virtio, emulator) => new PciTransport(virtio, { ...emulator, space: "io" }),
  drive({}),
);

testStreams(
  Deno.test,
  "PciTransport with MSI-X",
  (virtio, emulator) =>
    new PciTransport(virtio, {
      ...emulator,
      msix: {
        vectors: 4,
        message: () => emulator.interrupt(true),
      },
    }),
  drive({ msix: true }),
);

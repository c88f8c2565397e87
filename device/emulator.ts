import { GuestMemory, type MemoryRegion } from "../ring/memory.ts";

/** What a register transport needs of the emulator that maps its registers. */
export type EmulatorOptions = {
  /**
   * Guest memory as it is now; asked at each access to a register. Another object than the time before
   * means that the memory has moved, been grown or been replaced. An emulator whose memory may do that
   * lets {@link followMemory} make the objects.
   */
  memory: () => GuestMemory;
  /**
   * Drives the interrupt line; called when the level changes, in the middle of the device's work: the guest
   * is to run after it, not within.
   */
  interrupt: (level: boolean) => void;
  /**
   * Told of each write of the device into guest memory, rings included, after it: for an emulator that
   * keeps translated code or a log of dirty pages. `address` is a guest address, `length` in bytes.
   * Called in the middle of the device's work, so that it must not move the memory nor access
   * registers. Costs nothing where it is left out.
   */
  written?: (address: number, length: number) => void;
};

/**
 * Makes the getter of guest memory that a register transport asks for, for memory that may move: a
 * WebAssembly memory detaches its buffer when it grows. `look` tells where the memory is now; it is called
 * at each access to a register, and only another buffer, place or size than the last time makes another
 * {@link GuestMemory}.
 *
 * The getter throws what the constructor of {@link GuestMemory} throws.
 */
export function followMemory(look: () => MemoryRegion): () => GuestMemory {
  let last: MemoryRegion | null = null;
  let memory: GuestMemory = new GuestMemory([]);
  return () => {
    const now = look();
    if (
      last === null || now.buffer !== last.buffer || now.size !== last.size ||
      now.guestAddress !== last.guestAddress ||
      now.byteOffset !== last.byteOffset ||
      now.hostAddress !== last.hostAddress
    ) {
      memory = new GuestMemory([now]);
      last = { ...now };
    }
    return memory;
  };
}

//! What the ring of this package is compared with: the device side of a split queue by rust-vmm's virtio-queue, which
//! has no packed one, in its fastest loop: the queue without a lock, one `iter()` a batch, and one decision a batch.
//! The crate itself publishes each buffer.
//!
//! Reads lines "CASE BUFFERS" from its standard input, such as "split/pop_push/b32 131072", moves that many buffers and
//! answers each with the nanoseconds that one took. The memory and the steps are those of ../../ring_peer.ts.

use std::io::{BufRead, Write};
use std::sync::atomic::Ordering;
use std::time::Instant;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

const QUEUE: u16 = 256;
const PAIRS: u16 = QUEUE / 2;
const READABLE_BYTES: u32 = 44;
const WRITABLE_BYTES: u32 = 64;
const WRITTEN: u32 = 7;
const DESCRIPTORS: u64 = 0;
const DRIVER_AREA: u64 = 0x1000;
const DEVICE_AREA: u64 = 0x2000;
const DATA: u64 = 0x3000;
const STRIDE: u64 = 128;
const MEMORY_BYTES: usize = 0x3000 + 256 * 128;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const SEGMENTS: usize = 64;

/// Segments of a buffer, as a device keeps them.
struct Chain {
    count: usize,
    readable_bytes: u64,
    writable_bytes: u64,
    region: [u32; SEGMENTS],
    offset: [u64; SEGMENTS],
    length: [u32; SEGMENTS],
}

/// Stands in for a driver: offers the same buffers again, lap after lap.
struct Replay {
    avail: *mut u16,
    idx: u16,
}

impl Replay {
    fn new(memory: &GuestMemoryMmap) -> Self {
        for i in 0..PAIRS {
            let address = DATA + u64::from(i) * STRIDE;
            let descriptor = |index: u16, address: u64, length: u32, flags: u16, next: u16| {
                let at = GuestAddress(DESCRIPTORS + u64::from(index) * 16);
                memory.write_obj(address, at).unwrap();
                memory.write_obj(length, GuestAddress(at.0 + 8)).unwrap();
                memory.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
                memory.write_obj(next, GuestAddress(at.0 + 14)).unwrap();
            };
            descriptor(2 * i, address, READABLE_BYTES, F_NEXT, 2 * i + 1);
            descriptor(2 * i + 1, address + u64::from(READABLE_BYTES), WRITABLE_BYTES, F_WRITE, 0);
        }
        for i in 0..QUEUE {
            let head = 2 * (i % PAIRS);
            memory.write_obj(head, GuestAddress(DRIVER_AREA + 4 + 2 * u64::from(i))).unwrap();
        }
        let avail = memory.get_host_address(GuestAddress(DRIVER_AREA)).unwrap().cast();
        Replay { avail, idx: 0 }
    }

    fn offer(&mut self, count: u16) {
        // SAFETY: the driver area is mapped for as long as the program runs, and this is its only thread.
        unsafe {
            self.avail.add(2 + QUEUE as usize).write_volatile(self.idx);
            self.idx = self.idx.wrapping_add(count);
            self.avail.add(1).write_volatile(self.idx);
        }
    }

    fn check(&self, memory: &GuestMemoryMmap) {
        let used: u16 = memory.load(GuestAddress(DEVICE_AREA + 2), Ordering::SeqCst).unwrap();
        assert_eq!(used, self.idx, "used.idx");
        for i in 0..PAIRS {
            let at = u64::from(self.idx.wrapping_sub(PAIRS).wrapping_add(i) % QUEUE);
            let element = DEVICE_AREA + 4 + 8 * at;
            let id: u32 = memory.read_obj(GuestAddress(element)).unwrap();
            let length: u32 = memory.read_obj(GuestAddress(element + 4)).unwrap();
            assert_eq!((id, length), (2 * u32::from(i), WRITTEN), "used element");
        }
    }
}

struct Ring {
    memory: GuestMemoryMmap,
    queue: Queue,
    replay: Replay,
    chain: Chain,
}

impl Ring {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES.next_multiple_of(4096))]).unwrap();
        let mut queue = Queue::new(QUEUE).unwrap();
        queue.set_size(QUEUE);
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
        queue.set_avail_ring_address(Some(DRIVER_AREA as u32), Some(0));
        queue.set_used_ring_address(Some(DEVICE_AREA as u32), Some(0));
        queue.set_event_idx(true);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        let replay = Replay::new(&memory);
        let chain = Chain {
            count: 0,
            readable_bytes: 0,
            writable_bytes: 0,
            region: [0; SEGMENTS],
            offset: [0; SEGMENTS],
            length: [0; SEGMENTS],
        };
        Ring { memory, queue, replay, chain }
    }

    /// The device side alone; the nanoseconds that a buffer took.
    fn pop_push(&mut self, buffers: u64, batch: u16) -> f64 {
        let mut moved = 0;
        let mut interrupts = 0;
        let mut bytes = 0;
        // An iterator borrows the queue, so that what is to be completed waits in a list.
        let mut heads = [0u16; QUEUE as usize];
        let start = Instant::now();
        while moved < buffers {
            let mut left = PAIRS;
            while left > 0 {
                self.replay.offer(batch);
                let mut count = 0;
                for descriptors in self.queue.iter(&self.memory).unwrap() {
                    heads[count] = descriptors.head_index();
                    let chain = &mut self.chain;
                    chain.count = 0;
                    chain.readable_bytes = 0;
                    chain.writable_bytes = 0;
                    for descriptor in descriptors {
                        let i = chain.count;
                        let (region, MemoryRegionAddress(offset)) =
                            self.memory.to_region_addr(descriptor.addr()).expect("an address in a region");
                        assert!(u64::from(descriptor.len()) <= region.len() - offset && i < SEGMENTS);
                        chain.region[i] = 0;
                        chain.offset[i] = offset;
                        chain.length[i] = descriptor.len();
                        chain.count = i + 1;
                        if descriptor.is_write_only() {
                            chain.writable_bytes += u64::from(descriptor.len());
                        } else {
                            chain.readable_bytes += u64::from(descriptor.len());
                        }
                    }
                    bytes += chain.readable_bytes + chain.writable_bytes;
                    count += 1;
                }
                for &head in &heads[..count] {
                    self.queue.add_used(&self.memory, head, WRITTEN).unwrap();
                }
                moved += count as u64;
                if self.queue.needs_notification(&self.memory).unwrap() {
                    interrupts += 1;
                }
                left -= batch;
            }
        }
        let ns = start.elapsed().as_nanos() as f64;
        self.replay.check(&self.memory);
        assert_eq!(moved, buffers, "buffers");
        assert_eq!(interrupts, buffers / u64::from(batch), "notifications");
        assert_eq!(bytes, buffers * u64::from(READABLE_BYTES + WRITABLE_BYTES), "bytes");
        std::hint::black_box(&self.chain.region);
        std::hint::black_box(&self.chain.offset);
        std::hint::black_box(&self.chain.length);
        ns / buffers as f64
    }
}

fn main() {
    let mut ring = Ring::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let (case, buffers) = line.split_once(' ').expect("CASE BUFFERS");
        let batch = match case {
            "split/pop_push/b1" => 1,
            "split/pop_push/b32" => 32,
            "split/pop_push/full" => PAIRS,
            _ => panic!("no case {case}"),
        };
        println!("{:.4}", ring.pop_push(buffers.parse().unwrap(), batch));
        std::io::stdout().flush().unwrap();
    }
}

// What the ring of this package is compared with: both sides of a split and of a packed virtqueue (virtio 1.4,
// 2.7 and 2.8) in plain C, for EVENT_IDX and chains of descriptors in the ring.
//
//   gcc -O2 -pthread -o ring ring.c
//
// Reads lines "CASE BUFFERS" from its standard input, such as "split/pop_push/b32 131072", moves that many buffers and
// answers each with the nanoseconds that one took. The cases, their memory and their steps are those of ../ring_peer.ts.

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
  QUEUE = 256,
  MASK = QUEUE - 1,
  PAIRS = QUEUE / 2,
  SEGMENTS = 64,
  READABLE_BYTES = 44,
  WRITABLE_BYTES = 64,
  WRITTEN = 7,
  OUTSTANDING = 64,
  // Looks without work after which a thread lets others run: where there are more threads than cores.
  IDLE_LOOKS = 10000,
  // Where things lie in the guest's memory.
  DESCRIPTORS = 0,
  DRIVER_AREA = 0x1000,
  DEVICE_AREA = 0x2000,
  DATA = 0x3000,
  STRIDE = 128,
  MEMORY_BYTES = DATA + QUEUE * STRIDE,
};

enum { F_NEXT = 1, F_WRITE = 2, F_INDIRECT = 4, F_AVAIL = 0x80, F_USED = 0x8000, F_BOTH = 0x8080, EVENT_DESC = 2 };

struct descriptor {
  uint64_t address;
  uint32_t length;
  union {
    struct { uint16_t flags, next; } split;
    struct { uint16_t id, flags; } packed;
  };
};

struct region {
  uint64_t address, size;
};

// The guest's memory: regions, of which the last one that was asked for is tried first.
struct memory {
  uint8_t *bytes;
  struct region regions[4];
  uint32_t count, last;
};

// Segments of a buffer that the device fetched.
struct columns {
  uint32_t region[SEGMENTS];
  uint64_t offset[SEGMENTS];
  uint32_t length[SEGMENTS];
};

// The buffer itself; like the sides of a ring it is a local variable of its loop, which gcc keeps in registers.
struct chain {
  struct columns *columns;
  uint32_t token, count, readable;
  uint64_t readable_bytes, writable_bytes;
};

// Segments that a driver offers, those first that the device reads.
struct list {
  uint32_t count, readable;
  uint64_t address[SEGMENTS];
  uint32_t length[SEGMENTS];
};

static void wrong(const char *what) {
  fprintf(stderr, "ring: %s\n", what);
  exit(1);
}

static uint16_t load16(uint16_t *at) {
  return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}

static void store16(uint16_t *at, uint16_t value) {
  __atomic_store_n(at, value, __ATOMIC_SEQ_CST);
}

static bool need_event(uint16_t event, uint16_t now, uint16_t before) {
  return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

static bool packed_passed(uint16_t event, int position, int wrap, int moved) {
  int at = (event & 0x7fff) - (event >> 15 == wrap ? 0 : QUEUE);
  return moved > QUEUE || (at < position && at >= position - moved);
}

// Appends a segment; false where the descriptor's bytes do not all lie in one region, or the order is wrong.
static inline bool append(struct memory *memory, struct chain *chain, uint64_t address, uint32_t length, bool writable) {
  uint32_t at = memory->last;
  uint64_t offset = address - memory->regions[at].address;
  if (offset >= memory->regions[at].size || length > memory->regions[at].size - offset) {
    for (at = 0;; at++) {
      if (at == memory->count) return false;
      offset = address - memory->regions[at].address;
      if (offset < memory->regions[at].size && length <= memory->regions[at].size - offset) break;
    }
    memory->last = at;
  }
  uint32_t i = chain->count;
  if (i == SEGMENTS) return false;
  chain->columns->region[i] = at;
  chain->columns->offset[i] = offset;
  chain->columns->length[i] = length;
  chain->count = i + 1;
  if (writable) {
    chain->writable_bytes += length;
  } else {
    if (chain->readable != i) return false;
    chain->readable = i + 1;
    chain->readable_bytes += length;
  }
  return true;
}

static inline void clear(struct chain *chain) {
  chain->count = chain->readable = 0;
  chain->readable_bytes = chain->writable_bytes = 0;
}

// ---- split

struct used_element {
  uint32_t id, length;
};

struct split {
  struct memory memory;
  struct descriptor *table;
  uint16_t *avail;
  uint16_t *used;
  struct used_element *used_ring;
};

struct split_device {
  struct split *ring;
  uint16_t last_avail, avail, used, published, signalled;
};

struct split_driver {
  struct split *ring;
  uint16_t next_avail, published, kicked, last_used, used;
  uint16_t free_head, free;
  uint16_t *next;
  // By head.
  struct { uint16_t tail, slots; uint32_t room; } *book;
};

static inline bool split_pop(struct split_device *device, struct chain *chain) {
  struct split *ring = device->ring;
  if (device->last_avail == device->avail) {
    device->avail = load16(&ring->avail[1]);
    if (device->last_avail == device->avail) return false;
    if ((uint16_t)(device->avail - device->last_avail) > QUEUE) wrong("avail.idx jumped");
  }
  uint16_t head = ring->avail[2 + (device->last_avail & MASK)], index = head;
  clear(chain);
  // append() ends a loop.
  for (;;) {
    if (index >= QUEUE) wrong("bad chain");
    struct descriptor *from = &ring->table[index];
    uint64_t address = *(volatile uint64_t *)&from->address;
    uint32_t length = *(volatile uint32_t *)&from->length;
    uint16_t flags = *(volatile uint16_t *)&from->split.flags, next = *(volatile uint16_t *)&from->split.next;
    if ((flags & F_INDIRECT) != 0 || !append(&ring->memory, chain, address, length, (flags & F_WRITE) != 0)) wrong("bad descriptor");
    if ((flags & F_NEXT) == 0) break;
    index = next;
  }
  chain->token = head;
  device->last_avail++;
  return true;
}

static inline void split_push(struct split_device *device, uint32_t token, uint32_t written) {
  struct used_element *element = &device->ring->used_ring[device->used & MASK];
  element->id = token;
  element->length = written;
  device->used++;
}

static inline void split_publish(struct split_device *device) {
  device->published = device->used;
  store16(&device->ring->used[1], device->used);
}

static inline bool split_needs_interrupt(struct split_device *device) {
  uint16_t before = device->signalled;
  device->signalled = device->published;
  return need_event(load16(&device->ring->avail[2 + QUEUE]), device->published, before);
}

static inline bool split_arm_kicks(struct split_device *device) {
  store16(&device->ring->used[2 + 4 * QUEUE], device->last_avail);
  return load16(&device->ring->avail[1]) != device->last_avail;
}

static inline int split_add(struct split_driver *driver, const struct list *list) {
  struct descriptor *table = driver->ring->table;
  uint32_t count = list->count, room = 0;
  if (count == 0 || count > driver->free) return -1;
  uint16_t head = driver->free_head, index = head, tail = head;
  for (uint32_t i = 0; i < count; i++) {
    struct descriptor *to = &table[index];
    uint16_t next = driver->next[index], flags = i + 1 < count ? F_NEXT : 0;
    if (i >= list->readable) {
      flags |= F_WRITE;
      room += list->length[i];
    }
    to->address = list->address[i];
    to->length = list->length[i];
    to->split.flags = flags;
    to->split.next = next;
    tail = index;
    index = next;
  }
  driver->free_head = index;
  driver->free -= count;
  driver->book[head].tail = tail;
  driver->book[head].slots = count;
  driver->book[head].room = room;
  driver->ring->avail[2 + (driver->next_avail++ & MASK)] = head;
  return head;
}

static inline void split_driver_publish(struct split_driver *driver) {
  driver->published = driver->next_avail;
  store16(&driver->ring->avail[1], driver->published);
}

static inline bool split_needs_kick(struct split_driver *driver) {
  uint16_t before = driver->kicked;
  driver->kicked = driver->published;
  return need_event(load16(&driver->ring->used[2 + 4 * QUEUE]), driver->published, before);
}

static inline int split_reclaim(struct split_driver *driver, uint32_t *length) {
  if (driver->last_used == driver->used) {
    driver->used = load16(&driver->ring->used[1]);
    if (driver->last_used == driver->used) return -1;
  }
  struct used_element *element = &driver->ring->used_ring[driver->last_used++ & MASK];
  uint32_t head = element->id;
  *length = element->length;
  if (head >= QUEUE || driver->book[head].slots == 0 || *length > driver->book[head].room) wrong("bad used element");
  driver->next[driver->book[head].tail] = driver->free_head;
  driver->free_head = head;
  driver->free += driver->book[head].slots;
  driver->book[head].slots = 0;
  return head;
}

static inline bool split_arm_interrupts(struct split_driver *driver) {
  store16(&driver->ring->avail[2 + QUEUE], driver->last_used);
  return load16(&driver->ring->used[1]) != driver->last_used;
}

// ---- packed

struct packed {
  struct memory memory;
  struct descriptor *table;
  uint16_t *driver_event, *device_event;
};

struct packed_device {
  struct packed *ring;
  int avail, used, outstanding, staged, staged_first, moved;
  uint16_t avail_bits, used_bits, staged_flags;
  uint16_t *slots;
};

struct packed_driver {
  struct packed *ring;
  int next, used, staged, staged_first, moved, free_ids;
  uint16_t next_bits, used_bits, staged_flags;
  int free;
  uint16_t *ids;
  // By id.
  struct { uint16_t slots; uint32_t room; } *book;
};

static inline bool packed_pop(struct packed_device *device, struct chain *chain) {
  struct packed *ring = device->ring;
  int slot = device->avail;
  uint16_t bits = device->avail_bits;
  uint16_t flags = load16(&ring->table[slot].packed.flags), id;
  if ((flags & F_BOTH) != bits) return false;
  clear(chain);
  int slots = 0, room = QUEUE - device->outstanding;
  for (;;) {
    if (slots == room) wrong("chain too long");
    struct descriptor *from = &ring->table[slot];
    uint64_t address = *(volatile uint64_t *)&from->address;
    uint32_t length = *(volatile uint32_t *)&from->length;
    id = *(volatile uint16_t *)&from->packed.id;
    if (slots != 0) flags = *(volatile uint16_t *)&from->packed.flags;
    if ((flags & F_INDIRECT) != 0 || !append(&ring->memory, chain, address, length, (flags & F_WRITE) != 0)) wrong("bad descriptor");
    slots++;
    if (++slot == QUEUE) {
      slot = 0;
      bits ^= F_BOTH;
    }
    if ((flags & F_NEXT) == 0) break;
  }
  if (id >= QUEUE) wrong("bad id");
  device->slots[id] = slots;
  device->avail = slot;
  device->avail_bits = bits;
  device->outstanding += slots;
  chain->token = id;
  return true;
}

static inline void packed_push(struct packed_device *device, uint32_t token, uint32_t written) {
  int at = device->used, slots = device->slots[token];
  struct descriptor *to = &device->ring->table[at];
  uint16_t flags = device->used_bits | (written != 0 ? F_WRITE : 0);
  to->length = written;
  to->packed.id = token;
  if (device->staged == 0) {
    device->staged_first = at;
    device->staged_flags = flags;
  } else {
    to->packed.flags = flags;
  }
  device->staged += slots;
  device->outstanding -= slots;
  at += slots;
  if (at >= QUEUE) {
    at -= QUEUE;
    device->used_bits ^= F_BOTH;
  }
  device->used = at;
}

static inline void packed_publish(struct packed_device *device) {
  store16(&device->ring->table[device->staged_first].packed.flags, device->staged_flags);
  device->moved += device->staged;
  device->staged = 0;
}

static inline bool packed_needs_interrupt(struct packed_device *device) {
  int moved = device->moved;
  device->moved = 0;
  uint16_t flags = load16(&device->ring->driver_event[1]);
  if (flags != EVENT_DESC) return flags == 0;
  return packed_passed(load16(&device->ring->driver_event[0]), device->used, device->used_bits >> 15, moved);
}

static inline bool packed_arm_kicks(struct packed_device *device) {
  store16(&device->ring->device_event[0], device->avail | (device->avail_bits == F_AVAIL ? 0x8000 : 0));
  return (load16(&device->ring->table[device->avail].packed.flags) & F_BOTH) == device->avail_bits;
}

static inline int packed_add(struct packed_driver *driver, const struct list *list) {
  struct descriptor *table = driver->ring->table;
  uint32_t count = list->count, room = 0;
  if (count == 0 || (int)count > driver->free) return -1;
  uint16_t id = driver->ids[--driver->free_ids], bits = driver->next_bits, first_flags = 0;
  int first = driver->next, slot = first;
  for (uint32_t i = 0; i < count; i++) {
    struct descriptor *to = &table[slot];
    uint16_t flags = bits | (i + 1 < count ? F_NEXT : 0);
    if (i >= list->readable) {
      flags |= F_WRITE;
      room += list->length[i];
    }
    to->address = list->address[i];
    to->length = list->length[i];
    to->packed.id = id;
    if (i == 0) {
      first_flags = flags;
    } else {
      to->packed.flags = flags;
    }
    if (++slot == QUEUE) {
      slot = 0;
      bits ^= F_BOTH;
    }
  }
  // The flags of the first one make all of them available.
  if (driver->staged == 0) {
    driver->staged_first = first;
    driver->staged_flags = first_flags;
  } else {
    table[first].packed.flags = first_flags;
  }
  driver->next = slot;
  driver->next_bits = bits;
  driver->free -= count;
  driver->staged += count;
  driver->book[id].slots = count;
  driver->book[id].room = room;
  return id;
}

static inline void packed_driver_publish(struct packed_driver *driver) {
  store16(&driver->ring->table[driver->staged_first].packed.flags, driver->staged_flags);
  driver->moved += driver->staged;
  driver->staged = 0;
}

static inline bool packed_needs_kick(struct packed_driver *driver) {
  int moved = driver->moved;
  driver->moved = 0;
  uint16_t flags = load16(&driver->ring->device_event[1]);
  if (flags != EVENT_DESC) return flags == 0;
  return packed_passed(load16(&driver->ring->device_event[0]), driver->next, driver->next_bits == F_AVAIL, moved);
}

static inline int packed_reclaim(struct packed_driver *driver, uint32_t *length) {
  struct descriptor *from = &driver->ring->table[driver->used];
  uint16_t flags = load16(&from->packed.flags);
  if ((flags & F_BOTH) != driver->used_bits) return -1;
  uint16_t id = from->packed.id;
  *length = (flags & F_WRITE) != 0 ? from->length : 0;
  if (id >= QUEUE || driver->book[id].slots == 0 || *length > driver->book[id].room) wrong("bad used descriptor");
  driver->used += driver->book[id].slots;
  driver->free += driver->book[id].slots;
  driver->book[id].slots = 0;
  driver->ids[driver->free_ids++] = id;
  if (driver->used >= QUEUE) {
    driver->used -= QUEUE;
    driver->used_bits ^= F_BOTH;
  }
  return id;
}

static inline bool packed_arm_interrupts(struct packed_driver *driver) {
  store16(&driver->ring->driver_event[0], driver->used | (driver->used_bits == F_BOTH ? 0x8000 : 0));
  return (load16(&driver->ring->table[driver->used].packed.flags) & F_BOTH) == driver->used_bits;
}

// ---- the cases; FORMAT is split or packed

static void memory_init(struct memory *memory) {
  memory->bytes = aligned_alloc(4096, (MEMORY_BYTES + 4095) & ~4095);
  memset(memory->bytes, 0, MEMORY_BYTES);
  memory->regions[0] = (struct region){ 0, MEMORY_BYTES };
  memory->count = 1;
  memory->last = 0;
}

static void split_init(struct split *ring, struct split_device *device, struct split_driver *driver) {
  memory_init(&ring->memory);
  ring->table = (struct descriptor *)(ring->memory.bytes + DESCRIPTORS);
  ring->avail = (uint16_t *)(ring->memory.bytes + DRIVER_AREA);
  ring->used = (uint16_t *)(ring->memory.bytes + DEVICE_AREA);
  ring->used_ring = (struct used_element *)(ring->memory.bytes + DEVICE_AREA + 4);
  memset(device, 0, sizeof *device);
  memset(driver, 0, sizeof *driver);
  device->ring = driver->ring = ring;
  driver->next = calloc(QUEUE, 2);
  driver->book = calloc(QUEUE, sizeof *driver->book);
  driver->free = QUEUE;
  for (int i = 0; i < QUEUE; i++) driver->next[i] = i + 1;
}

static void packed_init(struct packed *ring, struct packed_device *device, struct packed_driver *driver) {
  memory_init(&ring->memory);
  ring->table = (struct descriptor *)(ring->memory.bytes + DESCRIPTORS);
  ring->driver_event = (uint16_t *)(ring->memory.bytes + DRIVER_AREA);
  ring->device_event = (uint16_t *)(ring->memory.bytes + DEVICE_AREA);
  ring->driver_event[1] = ring->device_event[1] = EVENT_DESC;
  ring->driver_event[0] = ring->device_event[0] = 0x8000;
  memset(device, 0, sizeof *device);
  memset(driver, 0, sizeof *driver);
  device->ring = driver->ring = ring;
  device->avail_bits = driver->next_bits = F_AVAIL;
  device->used_bits = driver->used_bits = F_BOTH;
  driver->free_ids = QUEUE;
  device->slots = calloc(QUEUE, 2);
  driver->book = calloc(QUEUE, sizeof *driver->book);
  driver->free = QUEUE;
  driver->ids = calloc(QUEUE, 2);
  for (int i = 0; i < QUEUE; i++) driver->ids[i] = QUEUE - 1 - i;
}

static struct list lists[PAIRS];

static void make_lists(void) {
  for (int i = 0; i < PAIRS; i++) {
    uint64_t address = DATA + (uint64_t)i * STRIDE;
    lists[i] = (struct list){ 2, 1, { address, address + READABLE_BYTES }, { READABLE_BYTES, WRITABLE_BYTES } };
  }
}

static double now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e9 + now.tv_nsec;
}

// Stands in for a driver: offers the same buffers again, lap after lap.
struct split_replay {
  struct split *ring;
  uint16_t idx;
};

static void split_replay_init(struct split_replay *replay, struct split_driver *driver) {
  for (int i = 0; i < PAIRS; i++) split_add(driver, &lists[i]);
  memcpy(&driver->ring->avail[2 + PAIRS], &driver->ring->avail[2], PAIRS * 2);
  replay->ring = driver->ring;
  replay->idx = 0;
}

static inline void split_replay_lap(struct split_replay *replay) {
  (void)replay;
}

static inline void split_replay_offer(struct split_replay *replay, int count) {
  volatile uint16_t *avail = replay->ring->avail;
  avail[2 + QUEUE] = replay->idx;
  replay->idx += count;
  avail[1] = replay->idx;
}

static void split_replay_check(struct split_replay *replay) {
  if (replay->ring->used[1] != replay->idx) wrong("used.idx");
  for (int i = 0; i < PAIRS; i++) {
    struct used_element *element = &replay->ring->used_ring[(replay->idx - PAIRS + i) & MASK];
    if (element->id != replay->ring->avail[2 + i] || element->length != WRITTEN) wrong("used element");
  }
}

struct packed_replay {
  struct packed *ring;
  struct descriptor images[2][QUEUE];
  uint16_t ids[PAIRS];
  int wrap, slot;
};

static void packed_replay_init(struct packed_replay *replay, struct packed_driver *driver) {
  struct packed *ring = driver->ring;
  for (int i = 0; i < PAIRS; i++) {
    packed_add(driver, &lists[i]);
    replay->ids[i] = ring->table[2 * i].packed.id;
  }
  ring->table[driver->staged_first].packed.flags = driver->staged_flags;
  for (int wrap = 0; wrap < 2; wrap++) {
    for (int i = 0; i < QUEUE; i++) {
      replay->images[wrap][i] = ring->table[i];
      uint16_t *flags = &replay->images[wrap][i].packed.flags;
      *flags = (*flags & ~F_BOTH) | (wrap ? F_AVAIL : F_USED);
    }
  }
  for (int i = 0; i < QUEUE; i++) ring->table[i].packed.flags = 0;
  replay->ring = ring;
  replay->wrap = replay->slot = 0;
}

static inline void packed_replay_lap(struct packed_replay *replay) {
  replay->wrap ^= 1;
  replay->slot = 0;
  memcpy(replay->ring->table, replay->images[replay->wrap], sizeof replay->images[0]);
  // The whole lap is there but for its first head; the offers move that gap on.
  replay->ring->table[0].packed.flags ^= F_BOTH;
}

static inline void packed_replay_offer(struct packed_replay *replay, int count) {
  struct descriptor *table = replay->ring->table;
  int first = replay->slot, next = first + count * 2;
  *(volatile uint16_t *)&replay->ring->driver_event[0] = first | replay->wrap << 15;
  if (next < QUEUE) *(volatile uint16_t *)&table[next].packed.flags ^= F_BOTH;
  *(volatile uint16_t *)&table[first].packed.flags ^= F_BOTH;
  replay->slot = next;
}

static void packed_replay_check(struct packed_replay *replay) {
  uint16_t bits = replay->wrap ? F_BOTH : 0;
  for (int i = 0; i < PAIRS; i++) {
    struct descriptor *at = &replay->ring->table[2 * i];
    if ((at->packed.flags & F_BOTH) != bits || at->packed.id != replay->ids[i] || at->length != WRITTEN) wrong("used descriptor");
  }
}

static void check(long moved, long notifications, uint64_t bytes, long buffers, long batches) {
  if (moved != buffers) wrong("buffers");
  if (notifications != batches) wrong("notifications");
  if (bytes != (uint64_t)buffers * (READABLE_BYTES + WRITABLE_BYTES)) wrong("bytes");
}

static inline void rest(int *idle) {
  if (++*idle < IDLE_LOOKS) return;
  *idle = 0;
  sched_yield();
}

#define CASES(FORMAT)                                                                                                  \
  /* A ring with both of its sides, which a case works on copies of. */                                                \
  struct FORMAT##_pair {                                                                                               \
    struct FORMAT ring;                                                                                                \
    struct FORMAT##_device device;                                                                                     \
    struct FORMAT##_driver driver;                                                                                     \
    struct FORMAT##_replay replay;                                                                                     \
    struct columns columns;                                                                                            \
    bool ready;                                                                                                        \
    long buffers;                                                                                                      \
    int batch;                                                                                                         \
    uint64_t bytes;                                                                                                    \
  };                                                                                                                   \
                                                                                                                       \
  /* The device side alone: index read, publication and decision once a batch. */                                      \
  static double FORMAT##_pop_push(long buffers, int batch) {                                                           \
    static struct FORMAT##_pair pair;                                                                                  \
    if (!pair.ready) {                                                                                                 \
      FORMAT##_init(&pair.ring, &pair.device, &pair.driver);                                                           \
      FORMAT##_replay_init(&pair.replay, &pair.driver);                                                                \
      pair.ready = true;                                                                                               \
    }                                                                                                                  \
    struct FORMAT##_device device = pair.device;                                                                       \
    struct chain chain = { .columns = &pair.columns };                                                                 \
    long moved = 0, interrupts = 0;                                                                                    \
    uint64_t bytes = 0;                                                                                                \
    double start = now_ns();                                                                                           \
    while (moved < buffers) {                                                                                          \
      FORMAT##_replay_lap(&pair.replay);                                                                               \
      for (int left = PAIRS; left > 0; left -= batch) {                                                                \
        FORMAT##_replay_offer(&pair.replay, batch);                                                                    \
        for (int i = 0; i < batch; i++) {                                                                              \
          if (!FORMAT##_pop(&device, &chain)) wrong("no buffer");                                                      \
          bytes += chain.readable_bytes + chain.writable_bytes;                                                        \
          FORMAT##_push(&device, chain.token, WRITTEN);                                                                \
        }                                                                                                              \
        moved += batch;                                                                                                \
        FORMAT##_publish(&device);                                                                                     \
        if (FORMAT##_needs_interrupt(&device)) interrupts++;                                                           \
      }                                                                                                                \
    }                                                                                                                  \
    double ns = now_ns() - start;                                                                                      \
    pair.device = device;                                                                                              \
    FORMAT##_replay_check(&pair.replay);                                                                               \
    check(moved, interrupts, bytes, buffers, buffers / batch);                                                         \
    return ns / buffers;                                                                                               \
  }                                                                                                                    \
                                                                                                                       \
  /* Both sides in one thread. */                                                                                      \
  static double FORMAT##_round_trip(long buffers, int batch) {                                                         \
    static struct FORMAT##_pair pair;                                                                                  \
    if (!pair.ready) {                                                                                                 \
      FORMAT##_init(&pair.ring, &pair.device, &pair.driver);                                                           \
      pair.ready = true;                                                                                               \
    }                                                                                                                  \
    struct FORMAT##_device device = pair.device;                                                                       \
    struct FORMAT##_driver driver = pair.driver;                                                                       \
    struct chain chain = { .columns = &pair.columns };                                                                 \
    long moved = 0, notifications = 0;                                                                                 \
    uint64_t bytes = 0;                                                                                                \
    double start = now_ns();                                                                                           \
    for (long left = buffers; left > 0; left -= batch) {                                                               \
      uint32_t length;                                                                                                 \
      for (int i = 0; i < batch; i++) if (FORMAT##_add(&driver, &lists[i]) < 0) wrong("full");                         \
      FORMAT##_driver_publish(&driver);                                                                                \
      if (FORMAT##_needs_kick(&driver)) notifications++;                                                               \
      while (FORMAT##_pop(&device, &chain)) {                                                                          \
        bytes += chain.readable_bytes + chain.writable_bytes;                                                          \
        FORMAT##_push(&device, chain.token, WRITTEN);                                                                  \
      }                                                                                                                \
      FORMAT##_publish(&device);                                                                                       \
      if (FORMAT##_needs_interrupt(&device)) notifications++;                                                          \
      if (FORMAT##_arm_kicks(&device)) wrong("a buffer was left");                                                     \
      while (FORMAT##_reclaim(&driver, &length) >= 0) {                                                                \
        if (length == WRITTEN) moved++;                                                                                \
      }                                                                                                                \
      if (FORMAT##_arm_interrupts(&driver)) wrong("a buffer was left");                                                \
    }                                                                                                                  \
    double ns = now_ns() - start;                                                                                      \
    pair.device = device;                                                                                              \
    pair.driver = driver;                                                                                              \
    check(moved, notifications, bytes, buffers, buffers / batch * 2);                                                  \
    return ns / buffers;                                                                                               \
  }                                                                                                                    \
                                                                                                                       \
  /* One thread a side, both looking for work without rest. */                                                         \
  static void *FORMAT##_serve(void *argument) {                                                                        \
    struct FORMAT##_pair *pair = argument;                                                                             \
    struct FORMAT##_device device = pair->device;                                                                      \
    struct chain chain = { .columns = &pair->columns };                                                                \
    uint64_t bytes = 0;                                                                                                \
    int idle = 0;                                                                                                      \
    for (long done = 0; done < pair->buffers;) {                                                                       \
      int count = 0;                                                                                                   \
      while (count < pair->batch && FORMAT##_pop(&device, &chain)) {                                                   \
        bytes += chain.readable_bytes + chain.writable_bytes;                                                          \
        FORMAT##_push(&device, chain.token, WRITTEN);                                                                  \
        count++;                                                                                                       \
      }                                                                                                                \
      if (count == 0) {                                                                                                \
        rest(&idle);                                                                                                   \
        continue;                                                                                                      \
      }                                                                                                                \
      idle = 0;                                                                                                        \
      FORMAT##_publish(&device);                                                                                       \
      FORMAT##_needs_interrupt(&device);                                                                               \
      done += count;                                                                                                   \
    }                                                                                                                  \
    pair->device = device;                                                                                             \
    pair->bytes = bytes;                                                                                               \
    return NULL;                                                                                                       \
  }                                                                                                                    \
                                                                                                                       \
  static double FORMAT##_two_threads(long buffers, int batch) {                                                        \
    static struct FORMAT##_pair pair;                                                                                  \
    if (!pair.ready) {                                                                                                 \
      FORMAT##_init(&pair.ring, &pair.device, &pair.driver);                                                           \
      pair.ready = true;                                                                                               \
    }                                                                                                                  \
    pair.buffers = buffers;                                                                                            \
    pair.batch = batch;                                                                                                \
    struct FORMAT##_driver driver = pair.driver;                                                                       \
    pthread_t thread;                                                                                                  \
    if (pthread_create(&thread, NULL, FORMAT##_serve, &pair) != 0) wrong("no thread");                                 \
    long added = 0, moved = 0;                                                                                         \
    int idle = 0;                                                                                                      \
    double start = 0;                                                                                                  \
    while (moved < buffers) {                                                                                          \
      uint32_t length;                                                                                                 \
      /* Both run once the first buffers are back. */                                                                  \
      if (start == 0 && moved > 0) start = now_ns();                                                                   \
      while (added < buffers && added - moved + batch <= OUTSTANDING) {                                                \
        for (int i = 0; i < batch; i++) FORMAT##_add(&driver, &lists[(added + i) % PAIRS]);                            \
        added += batch;                                                                                                \
        FORMAT##_driver_publish(&driver);                                                                              \
        FORMAT##_needs_kick(&driver);                                                                                  \
      }                                                                                                                \
      long before = moved;                                                                                             \
      while (FORMAT##_reclaim(&driver, &length) >= 0) {                                                                \
        if (length == WRITTEN) moved++;                                                                                \
      }                                                                                                                \
      if (moved == before) {                                                                                           \
        rest(&idle);                                                                                                   \
      } else {                                                                                                         \
        idle = 0;                                                                                                      \
      }                                                                                                                \
    }                                                                                                                  \
    double ns = now_ns() - start;                                                                                      \
    pthread_join(thread, NULL);                                                                                        \
    pair.driver = driver;                                                                                              \
    check(moved, 0, pair.bytes, buffers, 0);                                                                           \
    return ns / buffers;                                                                                               \
  }

CASES(split)
CASES(packed)

int main(void) {
  char format[32], kind[32], name[32];
  long buffers;
  make_lists();
  while (scanf(" %31[^/]/%31[^/]/%31s %ld", format, kind, name, &buffers) == 4) {
    bool split = strcmp(format, "split") == 0;
    int batch = strcmp(name, "full") == 0 ? PAIRS : atoi(name + 1);
    double ns = -1;
    if (strcmp(kind, "pop_push") == 0) ns = (split ? split_pop_push : packed_pop_push)(buffers, batch);
    if (strcmp(kind, "round_trip") == 0) ns = (split ? split_round_trip : packed_round_trip)(buffers, batch);
    if (strcmp(kind, "two_threads") == 0) ns = (split ? split_two_threads : packed_two_threads)(buffers, batch);
    if (ns < 0) wrong("no such case");
    printf("%.4f\n", ns);
    fflush(stdout);
  }
  return 0;
}

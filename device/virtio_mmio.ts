/**
 * Register offsets of virtio over MMIO (virtio 1.4, 4.2.2), named as in Linux's `virtio_mmio.h`, and two
 * registers of our own.
 */

/** R: 0x74726976, "virt". */
export const VIRTIO_MMIO_MAGIC_VALUE = 0x000;
/** R: 2. */
export const VIRTIO_MMIO_VERSION = 0x004;
/** R: type of the device, as in virtio 1.4, 5. */
export const VIRTIO_MMIO_DEVICE_ID = 0x008;
/** R: who made it. */
export const VIRTIO_MMIO_VENDOR_ID = 0x00c;
/** R: 32 offered features, by DEVICE_FEATURES_SEL. */
export const VIRTIO_MMIO_DEVICE_FEATURES = 0x010;
/** W: which 32 offered features are read. */
export const VIRTIO_MMIO_DEVICE_FEATURES_SEL = 0x014;
/** W: 32 accepted features, by DRIVER_FEATURES_SEL. */
export const VIRTIO_MMIO_DRIVER_FEATURES = 0x020;
/** W: which 32 accepted features are written. */
export const VIRTIO_MMIO_DRIVER_FEATURES_SEL = 0x024;
/** W: the queue that the other QUEUE registers are about. */
export const VIRTIO_MMIO_QUEUE_SEL = 0x030;
/** R: most descriptors of the queue, 0 where the device has no such queue. */
export const VIRTIO_MMIO_QUEUE_NUM_MAX = 0x034;
/** W: descriptors of the queue. */
export const VIRTIO_MMIO_QUEUE_NUM = 0x038;
/** RW: 1 while the queue can be used. */
export const VIRTIO_MMIO_QUEUE_READY = 0x044;
/** W: a queue has new buffers. */
export const VIRTIO_MMIO_QUEUE_NOTIFY = 0x050;
/** R: why the interrupt is up: 1 used buffers, 2 configuration change. */
export const VIRTIO_MMIO_INTERRUPT_STATUS = 0x060;
/** W: bits of INTERRUPT_STATUS that were dealt with. */
export const VIRTIO_MMIO_INTERRUPT_ACK = 0x064;
/** RW: the device status; 0 resets. */
export const VIRTIO_MMIO_STATUS = 0x070;
/** W: guest address of the descriptor area, low half. */
export const VIRTIO_MMIO_QUEUE_DESC_LOW = 0x080;
/** W: its high half. */
export const VIRTIO_MMIO_QUEUE_DESC_HIGH = 0x084;
/** W: guest address of the driver area, low half. */
export const VIRTIO_MMIO_QUEUE_AVAIL_LOW = 0x090;
/** W: its high half. */
export const VIRTIO_MMIO_QUEUE_AVAIL_HIGH = 0x094;
/** W: guest address of the device area, low half. */
export const VIRTIO_MMIO_QUEUE_USED_LOW = 0x0a0;
/** W: its high half. */
export const VIRTIO_MMIO_QUEUE_USED_HIGH = 0x0a4;
/** W: the shared memory region that the other SHM registers are about. */
export const VIRTIO_MMIO_SHM_SEL = 0x0ac;
/** R: its length, low half; -1 where there is no such region. */
export const VIRTIO_MMIO_SHM_LEN_LOW = 0x0b0;
/** R: its high half. */
export const VIRTIO_MMIO_SHM_LEN_HIGH = 0x0b4;
/** R: its guest address, low half; -1 where there is no such region. */
export const VIRTIO_MMIO_SHM_BASE_LOW = 0x0b8;
/** R: its high half. */
export const VIRTIO_MMIO_SHM_BASE_HIGH = 0x0bc;
/** RW: writing 1 resets the queue, with VIRTIO_F_RING_RESET; reads 0 once that is done. */
export const VIRTIO_MMIO_QUEUE_RESET = 0x0c0;
/**
 * RW, not in the specification, in a gap that it leaves: the available state of the queue in bits 0 to 15, where
 * the device offers VIRTIO_F_QUEUE_STATE. Reads as 0xffffffff where no state can be told.
 */
export const VIRTIO_MMIO_QUEUE_AVAIL_STATE = 0x0e0;
/** RW, not in the specification: the used state of the queue, likewise. */
export const VIRTIO_MMIO_QUEUE_USED_STATE = 0x0e4;
/** R: changes with the configuration space. */
export const VIRTIO_MMIO_CONFIG_GENERATION = 0x0fc;
/** RW: start of the configuration space, accessed by bytes, half words and words. */
export const VIRTIO_MMIO_CONFIG = 0x100;

/** What MAGIC_VALUE reads as. */
export const VIRTIO_MMIO_MAGIC = 0x74726976;

/** INTERRUPT_STATUS: the device has used buffers. */
export const VIRTIO_MMIO_INT_VRING = 1;
/** INTERRUPT_STATUS: the configuration, or the status, has changed. */
export const VIRTIO_MMIO_INT_CONFIG = 2;

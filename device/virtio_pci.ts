/**
 * Numbers of virtio over PCI (virtio 1.4, 4.1), named as in Linux's `virtio_pci.h` and `pci_regs.h`, and two
 * fields of our own.
 */

/** PCI vendor ID of every virtio device. */
export const VIRTIO_PCI_VENDOR_ID = 0x1af4;
/** PCI device ID of the virtio device of type 0; that of another is its type added. */
export const VIRTIO_PCI_DEVICE_ID_BASE = 0x1040;

// -- Type 0 configuration header (PCI Local Bus 3.0, 6.1) --

/** le16, R. */
export const PCI_VENDOR_ID = 0x00;
/** le16, R. */
export const PCI_DEVICE_ID = 0x02;
/** le16, RW. */
export const PCI_COMMAND = 0x04;
/** PCI_COMMAND: the device answers in I/O space. */
export const PCI_COMMAND_IO = 0x1;
/** PCI_COMMAND: the device answers in memory space. */
export const PCI_COMMAND_MEMORY = 0x2;
/** PCI_COMMAND: the device may access memory by itself, and send messages. */
export const PCI_COMMAND_MASTER = 0x4;
/** PCI_COMMAND: the interrupt line stays down. */
export const PCI_COMMAND_INTX_DISABLE = 0x400;
/** le16, R. */
export const PCI_STATUS = 0x06;
/** PCI_STATUS: the device has an interrupt for the line, also where the line is disabled. */
export const PCI_STATUS_INTERRUPT = 0x08;
/** PCI_STATUS: there is a list of capabilities. */
export const PCI_STATUS_CAP_LIST = 0x10;
/** u8, R. */
export const PCI_REVISION_ID = 0x08;
/** Three bytes, R: programming interface, subclass, class. */
export const PCI_CLASS_PROG = 0x09;
/** u8, RW, for the driver's use. */
export const PCI_CACHE_LINE_SIZE = 0x0c;
/** le32, RW. */
export const PCI_BASE_ADDRESS_0 = 0x10;
/** PCI_BASE_ADDRESS_0: the BAR is in I/O space. */
export const PCI_BASE_ADDRESS_SPACE_IO = 0x1;
/** le16, R. */
export const PCI_SUBSYSTEM_VENDOR_ID = 0x2c;
/** le16, R. */
export const PCI_SUBSYSTEM_ID = 0x2e;
/** u8, R: where the list of capabilities begins. */
export const PCI_CAPABILITY_LIST = 0x34;
/** u8, RW, for the firmware's and driver's use. */
export const PCI_INTERRUPT_LINE = 0x3c;
/** u8, R: 1 for INTA#. */
export const PCI_INTERRUPT_PIN = 0x3d;

/** Capability: specific to the vendor. */
export const PCI_CAP_ID_VNDR = 0x09;
/** Capability: MSI-X. */
export const PCI_CAP_ID_MSIX = 0x11;
/** Message control of MSI-X, le16 at 2 of its capability: all vectors are masked. */
export const PCI_MSIX_FLAGS_MASKALL = 0x4000;
/** Message control of MSI-X: messages take the place of the line. */
export const PCI_MSIX_FLAGS_ENABLE = 0x8000;
/** Bytes of an entry in the table of MSI-X: address low, high, data, control. */
export const PCI_MSIX_ENTRY_SIZE = 16;
/** Control of an entry: the vector is masked. */
export const PCI_MSIX_ENTRY_CTRL_MASKBIT = 1;

// -- Virtio's capabilities (4.1.4) --

/** Type of a structure: common configuration. */
export const VIRTIO_PCI_CAP_COMMON_CFG = 1;
/** Type of a structure: notifications. */
export const VIRTIO_PCI_CAP_NOTIFY_CFG = 2;
/** Type of a structure: ISR status. */
export const VIRTIO_PCI_CAP_ISR_CFG = 3;
/** Type of a structure: configuration of this kind of device. */
export const VIRTIO_PCI_CAP_DEVICE_CFG = 4;
/** Type of a capability: a window in configuration space through which the BAR is accessed. */
export const VIRTIO_PCI_CAP_PCI_CFG = 5;

/** In a capability: type of the structure. */
export const VIRTIO_PCI_CAP_CFG_TYPE = 3;
/** In a capability: the BAR where the structure is. */
export const VIRTIO_PCI_CAP_BAR = 4;
/** In a capability: where it begins in the BAR, le32. */
export const VIRTIO_PCI_CAP_OFFSET = 8;
/** In a capability: bytes of it, le32. */
export const VIRTIO_PCI_CAP_LENGTH = 12;
/** In the capability of notifications: bytes from one queue's address to the next one's, le32. */
export const VIRTIO_PCI_NOTIFY_CAP_MULT = 16;
/** In the capability of the window: the bytes that are read or to be written, `pci_cfg_data`. */
export const VIRTIO_PCI_CFG_CAP_DATA = 16;

// -- Common configuration (4.1.4.3) --

/** le32, RW: which 32 offered features are read. */
export const VIRTIO_PCI_COMMON_DFSELECT = 0x00;
/** le32, R: 32 offered features. */
export const VIRTIO_PCI_COMMON_DF = 0x04;
/** le32, RW: which 32 accepted features are written. */
export const VIRTIO_PCI_COMMON_GFSELECT = 0x08;
/** le32, RW: 32 accepted features. */
export const VIRTIO_PCI_COMMON_GF = 0x0c;
/** le16, RW: the vector of configuration changes. */
export const VIRTIO_PCI_COMMON_MSIX = 0x10;
/** le16, R: how many queues there are. */
export const VIRTIO_PCI_COMMON_NUMQ = 0x12;
/** u8, RW: the device status; 0 resets. */
export const VIRTIO_PCI_COMMON_STATUS = 0x14;
/** u8, R: changes with the configuration of the device. */
export const VIRTIO_PCI_COMMON_CFGGENERATION = 0x15;
/** le16, RW: the queue that the fields from here on are about. */
export const VIRTIO_PCI_COMMON_Q_SELECT = 0x16;
/** le16, RW: descriptors; before the driver writes it, the most that are possible; 0 where there is no such queue. */
export const VIRTIO_PCI_COMMON_Q_SIZE = 0x18;
/** le16, RW: the vector of the queue. */
export const VIRTIO_PCI_COMMON_Q_MSIX = 0x1a;
/** le16, RW: 1 while the queue can be used. */
export const VIRTIO_PCI_COMMON_Q_ENABLE = 0x1c;
/** le16, R: where to notify, in units of the multiplier. */
export const VIRTIO_PCI_COMMON_Q_NOFF = 0x1e;
/** le64, RW, accessed by halves: guest address of the descriptor area. */
export const VIRTIO_PCI_COMMON_Q_DESCLO = 0x20;
/** Its high half. */
export const VIRTIO_PCI_COMMON_Q_DESCHI = 0x24;
/** le64, RW: guest address of the driver area. */
export const VIRTIO_PCI_COMMON_Q_AVAILLO = 0x28;
/** Its high half. */
export const VIRTIO_PCI_COMMON_Q_AVAILHI = 0x2c;
/** le64, RW: guest address of the device area. */
export const VIRTIO_PCI_COMMON_Q_USEDLO = 0x30;
/** Its high half. */
export const VIRTIO_PCI_COMMON_Q_USEDHI = 0x34;
/** le16, R: what names the queue in notifications with VIRTIO_F_NOTIF_CONFIG_DATA, `queue_notif_config_data`. */
export const VIRTIO_PCI_COMMON_Q_NDATA = 0x38;
/** le16, RW: writing 1 resets the queue, with VIRTIO_F_RING_RESET; reads 0 once that is done. */
export const VIRTIO_PCI_COMMON_Q_RESET = 0x3a;
/** le16, R: first administration queue; there is none. */
export const VIRTIO_PCI_COMMON_ADM_Q_IDX = 0x3c;
/** le16, R: how many administration queues there are: 0. */
export const VIRTIO_PCI_COMMON_ADM_Q_NUM = 0x3e;
/** Bytes of the common configuration as the specification has it. */
export const VIRTIO_PCI_COMMON_SIZE = 0x40;
/**
 * le32, RW, not in the specification, behind what it has: the available state of the queue in bits 0 to 15, where
 * the device offers VIRTIO_F_QUEUE_STATE. Reads as 0xffffffff where no state can be told.
 */
export const VIRTIO_PCI_COMMON_Q_AVAIL_STATE = 0x40;
/** le32, RW, not in the specification: the used state of the queue, likewise. */
export const VIRTIO_PCI_COMMON_Q_USED_STATE = 0x44;
/** Bytes of the common configuration with the states of queues. */
export const VIRTIO_PCI_COMMON_STATE_SIZE = 0x48;

/** ISR status: the device has used buffers. */
export const VIRTIO_PCI_ISR_QUEUE = 0x1;
/** ISR status: the configuration, or the status, has changed. */
export const VIRTIO_PCI_ISR_CONFIG = 0x2;
/** A vector that is none. */
export const VIRTIO_MSI_NO_VECTOR = 0xffff;

/**
 * Constants of the vhost-user protocol, spelled as in its specification (QEMU,
 * docs/interop/vhost-user).
 */
/** Request of the front-end: the features that the device offers, u64. */
export const VHOST_USER_GET_FEATURES = 1;
/** Request of the front-end: the features that the driver has accepted, u64. */
export const VHOST_USER_SET_FEATURES = 2;
/** Request of the front-end: the session starts. */
export const VHOST_USER_SET_OWNER = 3;
/** Request of the front-end: deprecated; ignored. */
export const VHOST_USER_RESET_OWNER = 4;
/** Request of the front-end: the whole memory table, one descriptor a region. */
export const VHOST_USER_SET_MEM_TABLE = 5;
/** Request of the front-end: the dirty log. */
export const VHOST_USER_SET_LOG_BASE = 6;
/** Request of the front-end: the eventfd that tells of a changed log. */
export const VHOST_USER_SET_LOG_FD = 7;
/** Request of the front-end: size of a ring. */
export const VHOST_USER_SET_VRING_NUM = 8;
/** Request of the front-end: addresses of a ring, in the front-end's own address space. */
export const VHOST_USER_SET_VRING_ADDR = 9;
/** Request of the front-end: indices of a ring. */
export const VHOST_USER_SET_VRING_BASE = 10;
/** Request of the front-end: stops a ring and asks for its indices. */
export const VHOST_USER_GET_VRING_BASE = 11;
/** Request of the front-end: descriptor of the kicks; starts the ring. */
export const VHOST_USER_SET_VRING_KICK = 12;
/** Request of the front-end: descriptor of the interrupts. */
export const VHOST_USER_SET_VRING_CALL = 13;
/** Request of the front-end: descriptor of the errors. */
export const VHOST_USER_SET_VRING_ERR = 14;
/** Request of the front-end: the protocol features that the back-end offers, u64. */
export const VHOST_USER_GET_PROTOCOL_FEATURES = 15;
/** Request of the front-end: the protocol features that the front-end has chosen, u64. */
export const VHOST_USER_SET_PROTOCOL_FEATURES = 16;
/** Request of the front-end: how many queues the back-end can have, u64. */
export const VHOST_USER_GET_QUEUE_NUM = 17;
/** Request of the front-end: enables or disables a ring. */
export const VHOST_USER_SET_VRING_ENABLE = 18;
/** Request of the front-end: network devices only. */
export const VHOST_USER_SEND_RARP = 19;
/** Request of the front-end: network devices only. */
export const VHOST_USER_NET_SET_MTU = 20;
/** Request of the front-end: the socket for requests of the back-end. */
export const VHOST_USER_SET_BACKEND_REQ_FD = 21;
/** Request of the front-end: with VIRTIO_F_ACCESS_PLATFORM only. */
export const VHOST_USER_IOTLB_MSG = 22;
/** Request of the front-end: legacy devices only. */
export const VHOST_USER_SET_VRING_ENDIAN = 23;
/** Request of the front-end: reads the configuration space. */
export const VHOST_USER_GET_CONFIG = 24;
/** Request of the front-end: writes the configuration space. */
export const VHOST_USER_SET_CONFIG = 25;
/** Request of the front-end: crypto devices only. */
export const VHOST_USER_CREATE_CRYPTO_SESSION = 26;
/** Request of the front-end: crypto devices only. */
export const VHOST_USER_CLOSE_CRYPTO_SESSION = 27;
/** Request of the front-end: postcopy migration. */
export const VHOST_USER_POSTCOPY_ADVISE = 28;
/** Request of the front-end: postcopy migration. */
export const VHOST_USER_POSTCOPY_LISTEN = 29;
/** Request of the front-end: postcopy migration. */
export const VHOST_USER_POSTCOPY_END = 30;
/** Request of the front-end: asks for a region that tracks buffers in flight. */
export const VHOST_USER_GET_INFLIGHT_FD = 31;
/** Request of the front-end: hands over a region that tracks buffers in flight. */
export const VHOST_USER_SET_INFLIGHT_FD = 32;
/** Request of the front-end: graphics devices only. */
export const VHOST_USER_GPU_SET_SOCKET = 33;
/** Request of the front-end: resets the device; the session goes on. */
export const VHOST_USER_RESET_DEVICE = 34;
/** Request of the front-end: a kick as a message. */
export const VHOST_USER_VRING_KICK = 35;
/** Request of the front-end: how many memory regions there may be, u64. */
export const VHOST_USER_GET_MAX_MEM_SLOTS = 36;
/** Request of the front-end: adds one memory region, with its descriptor. */
export const VHOST_USER_ADD_MEM_REG = 37;
/** Request of the front-end: removes one memory region. */
export const VHOST_USER_REM_MEM_REG = 38;
/** Request of the front-end: writes the device status, u64. */
export const VHOST_USER_SET_STATUS = 39;
/** Request of the front-end: reads the device status, u64. */
export const VHOST_USER_GET_STATUS = 40;

/** Request of the back-end: with VIRTIO_F_ACCESS_PLATFORM only. */
export const VHOST_USER_BACKEND_IOTLB_MSG = 1;
/** Request of the back-end: the configuration space has changed. */
export const VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2;
/** Request of the back-end: a notify area to map into the guest. */
export const VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG = 3;
/** Request of the back-end: an interrupt as a message. */
export const VHOST_USER_BACKEND_VRING_CALL = 4;
/** Request of the back-end: a ring's error as a message. */
export const VHOST_USER_BACKEND_VRING_ERR = 5;

/** Protocol feature bit: GET_QUEUE_NUM is answered. */
export const VHOST_USER_PROTOCOL_F_MQ = 0;
/** Protocol feature bit: dirty pages are logged in shared memory. */
export const VHOST_USER_PROTOCOL_F_LOG_SHMFD = 1;
/** Protocol feature bit: network devices only. */
export const VHOST_USER_PROTOCOL_F_RARP = 2;
/** Protocol feature bit: any request is answered when NEED_REPLY is set. */
export const VHOST_USER_PROTOCOL_F_REPLY_ACK = 3;
/** Protocol feature bit: network devices only. */
export const VHOST_USER_PROTOCOL_F_MTU = 4;
/** Protocol feature bit: there is a channel for requests of the back-end. */
export const VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5;
/** Protocol feature bit: legacy devices only. */
export const VHOST_USER_PROTOCOL_F_CROSS_ENDIAN = 6;
/** Protocol feature bit: crypto devices only. */
export const VHOST_USER_PROTOCOL_F_CRYPTO_SESSION = 7;
/** Protocol feature bit: postcopy migration. */
export const VHOST_USER_PROTOCOL_F_PAGEFAULT = 8;
/** Protocol feature bit: the configuration space is the back-end's. */
export const VHOST_USER_PROTOCOL_F_CONFIG = 9;
/** Protocol feature bit: the back-end's requests carry descriptors. */
export const VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD = 10;
/** Protocol feature bit: the back-end hands over notify areas. */
export const VHOST_USER_PROTOCOL_F_HOST_NOTIFIER = 11;
/** Protocol feature bit: buffers in flight are tracked in shared memory. */
export const VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 12;
/** Protocol feature bit: RESET_DEVICE is answered. */
export const VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13;
/** Protocol feature bit: kicks and calls may be messages. */
export const VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS = 14;
/** Protocol feature bit: memory regions are added and removed one by one. */
export const VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15;
/** Protocol feature bit: the device status is carried. */
export const VHOST_USER_PROTOCOL_F_STATUS = 16;

/** Feature bit of SET_FEATURES: protocol features are negotiated. */
export const VHOST_USER_F_PROTOCOL_FEATURES = 30;
/** Feature bit of SET_FEATURES: all writes to guest memory are logged. */
export const VHOST_F_LOG_ALL = 26;

/** Mask of the version in a header's flags. */
export const VHOST_USER_VERSION_MASK = 3;
/** The version, in a header's flags. */
export const VHOST_USER_VERSION = 1;
/** Header flag: the message is a reply. */
export const VHOST_USER_REPLY_FLAG = 4;
/** Header flag: the sender waits for a reply, with REPLY_ACK. */
export const VHOST_USER_NEED_REPLY_FLAG = 8;

/** Mask of the ring's index in the u64 of SET_VRING_KICK, CALL and ERR. */
export const VHOST_USER_VRING_IDX_MASK = 0xff;
/** Flag in the u64 of SET_VRING_KICK, CALL and ERR: no descriptor comes with it. */
export const VHOST_USER_VRING_NOFD_MASK = 0x100;
/** Flag of SET_VRING_ADDR: writes to the used ring are logged. */
export const VHOST_VRING_F_LOG_MASK = 1;

/** Flags of SET_CONFIG: the driver has written a field. */
export const VHOST_USER_CONFIG_TYPE_FRONTEND = 0;
/** Flags of SET_CONFIG: the target of a migration gets its configuration. */
export const VHOST_USER_CONFIG_TYPE_MIGRATION = 1;

/** Bytes of a header: request, flags, size, each 32 bits. */
export const VHOST_USER_HDR_SIZE = 12;
/** Bytes of a configuration space that one message carries at most. */
export const VHOST_USER_MAX_CONFIG_SIZE = 256;
/** Regions in one memory table. */
export const VHOST_MEMORY_BASELINE_NREGIONS = 8;

/** Payload that is accepted, in bytes; the largest lawful one, a full configuration, has 268. */
export const MAX_PAYLOAD_BYTES = 4096;
/** Descriptors that one message may carry; the largest lawful one, a memory table, has 8. */
export const MAX_MESSAGE_FDS = 32;
/** Memory regions at a time, where they are added one by one. */
export const MAX_MEM_SLOTS = 64;

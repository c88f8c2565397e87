import type { RingError } from "../../ring/errors.ts";
import { GuestMemory } from "../../ring/memory.ts";
import type { RingFormat } from "../../ring/queue.ts";
import {
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_RESET,
} from "../../ring/virtio_ring.ts";
import { refuseFeatures, VIRTIO_F_SUSPEND } from "../transport_features.ts";
import {
  featureMask,
  type TransportPort,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  type VirtioDevice,
} from "../virtio_device.ts";
import {
  MAX_MEM_SLOTS,
  VHOST_F_LOG_ALL,
  VHOST_MEMORY_BASELINE_NREGIONS,
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_BACKEND_CONFIG_CHANGE_MSG,
  VHOST_USER_BACKEND_VRING_CALL,
  VHOST_USER_BACKEND_VRING_ERR,
  VHOST_USER_CONFIG_TYPE_MIGRATION,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_GET_CONFIG,
  VHOST_USER_GET_FEATURES,
  VHOST_USER_GET_INFLIGHT_FD,
  VHOST_USER_GET_MAX_MEM_SLOTS,
  VHOST_USER_GET_PROTOCOL_FEATURES,
  VHOST_USER_GET_QUEUE_NUM,
  VHOST_USER_GET_STATUS,
  VHOST_USER_GET_VRING_BASE,
  VHOST_USER_NEED_REPLY_FLAG,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_REM_MEM_REG,
  VHOST_USER_REPLY_FLAG,
  VHOST_USER_RESET_DEVICE,
  VHOST_USER_RESET_OWNER,
  VHOST_USER_SET_BACKEND_REQ_FD,
  VHOST_USER_SET_CONFIG,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_INFLIGHT_FD,
  VHOST_USER_SET_LOG_BASE,
  VHOST_USER_SET_LOG_FD,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_SET_OWNER,
  VHOST_USER_SET_PROTOCOL_FEATURES,
  VHOST_USER_SET_STATUS,
  VHOST_USER_SET_VRING_ADDR,
  VHOST_USER_SET_VRING_BASE,
  VHOST_USER_SET_VRING_CALL,
  VHOST_USER_SET_VRING_ENABLE,
  VHOST_USER_SET_VRING_ERR,
  VHOST_USER_SET_VRING_KICK,
  VHOST_USER_SET_VRING_NUM,
  VHOST_USER_VRING_IDX_MASK,
  VHOST_USER_VRING_KICK,
  VHOST_USER_VRING_NOFD_MASK,
} from "./constants.ts";
import { VhostUserError } from "./errors.ts";
import {
  checkRegions,
  type MappedRegion,
  MemoryTable,
} from "./memory_table.ts";
import {
  encodeConfig,
  encodeInflight,
  encodeReply,
  encodeRequest,
  encodeU64,
  encodeVringState,
  type MemoryRegionDescription,
  parseBits,
  parseConfig,
  parseLog,
  parseMemoryRegion,
  parseMemoryTable,
  parseU64,
  parseVringAddresses,
  parseVringState,
  type VhostUserMessage,
} from "./message.ts";
import { InflightMemory } from "./_inflight.ts";
import { Logging } from "./_logging.ts";
import type { SessionPorts } from "./ports.ts";
import { ReceivedFds } from "./_received_fds.ts";
import { Vrings } from "./vrings.ts";

/** Options of a {@link VhostUserSession}. */
export type VhostUserSessionOptions = {
  /**
   * Offers VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS, for a front-end that wants kicks and calls as
   * messages (simulated time). Calls are sent without waiting for their answer. False unless told;
   * towards QEMU it must be.
   */
  inbandNotifications?: boolean;
};

/** Features of a device that have no meaning here. */
const NOT_CARRIED: readonly number[] = [
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_RING_RESET, // and VIRTIO_F_QUEUE_STATE
  VIRTIO_F_SUSPEND,
];

const PROTOCOL_FEATURES = featureMask(VHOST_USER_F_PROTOCOL_FEATURES);
const LOG_ALL = featureMask(VHOST_F_LOG_ALL);
/** Features of the session, of which the device knows nothing. */
const SESSION_FEATURES = PROTOCOL_FEATURES | LOG_ALL;

/**
 * The back-end's side of one vhost-user connection, without I/O: it takes whole messages and answers
 * through its {@link SessionPorts}. It is the transport of its {@link VirtioDevice}.
 *
 * A lawful request that can't be served, and an unlawful one, is counted, logged once a kind and
 * answered by a non-zero reply where the front-end asked for one; the session goes on with what it
 * had. It ends, by a {@link VhostUserError} with `fatal`, where the front-end waits for a reply that
 * cannot be given, or has accepted features that it was not offered. A session does not outlive its
 * connection: {@link VhostUserSession.close} resets the device.
 */
export class VhostUserSession implements TransportPort {
  /** The device that is served. */
  readonly device: VirtioDevice;
  /** Protocol features that are offered. */
  readonly offeredProtocolFeatures: bigint;

  readonly #ports: SessionPorts;
  readonly #vrings: Vrings;
  readonly #logging: Logging;
  readonly #inflight: InflightMemory;
  #table: MemoryTable = new MemoryTable();
  #protocolFeatures = 0n;
  /** Features as SET_FEATURES brought them; null before. */
  #features: bigint | null = null;
  #hasChannel = false;
  #memoryCame = false;
  #ended = false;
  #closed = false;
  /** A descriptor that goes with the next reply; -1 for none. */
  #replyFd = -1;

  /**
   * Plugs `device`, which is in its state after reset and in no other transport, into `ports`.
   *
   * @throws {TypeError} when it offers what vhost-user cannot carry: notifications with data, as a kick is
   * bare; SUSPEND, as a front-end keeps the status; and bit 40. As VIRTIO_F_QUEUE_STATE real guests would
   * take it for VIRTIO_F_RING_RESET, and that one a front-end does by its own means, if at all.
   */
  constructor(
    device: VirtioDevice,
    ports: SessionPorts,
    options: VhostUserSessionOptions = {},
  ) {
    refuseFeatures(device.offeredFeatures, NOT_CARRIED, "vhost-user");
    this.device = device;
    this.#ports = ports;
    const offered = [
      VHOST_USER_PROTOCOL_F_MQ,
      VHOST_USER_PROTOCOL_F_LOG_SHMFD,
      VHOST_USER_PROTOCOL_F_REPLY_ACK,
      VHOST_USER_PROTOCOL_F_BACKEND_REQ,
      VHOST_USER_PROTOCOL_F_CONFIG,
      VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
      VHOST_USER_PROTOCOL_F_RESET_DEVICE,
      VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
      VHOST_USER_PROTOCOL_F_STATUS,
    ];
    if (options.inbandNotifications === true) {
      offered.push(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
    }
    this.offeredProtocolFeatures = offered.reduce(
      (bits, bit) => bits | featureMask(bit),
      0n,
    );
    this.#inflight = new InflightMemory(ports);
    this.#vrings = new Vrings(device, ports, {
      inflight: this.#inflight,
      beforeStart: () => this.#acceptFeatures(),
      callInBand: (index) => {
        this.#sendInBand(VHOST_USER_BACKEND_VRING_CALL, index);
      },
      canLog: () => this.#has(VHOST_USER_PROTOCOL_F_LOG_SHMFD),
    });
    this.#logging = new Logging(
      device,
      (index) => this.#vrings.logAddress(index),
    );
    device.connect(this);
  }

  /**
   * True when some ring runs without a descriptor for kicks and without in-band ones: the host then
   * calls {@link VhostUserSession.poll} now and then, since nobody will wake it.
   */
  get polling(): boolean {
    return !this.#has(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) &&
      this.#vrings.polling;
  }

  /**
   * Serves one message and takes its descriptors over, in every case.
   *
   * @throws {VhostUserError} with `fatal` when the session has to end; the front-end has been
   * answered. Any further message throws `SESSION_CLOSED`.
   */
  receive(message: VhostUserMessage): void {
    const fds = new ReceivedFds(message.fds, this.#ports);
    try {
      if (this.#ended) {
        throw new VhostUserError(
          "SESSION_CLOSED",
          "Communication",
          `Cannot serve request ${message.request}: the session has ended`,
          true,
        );
      }
      this.#serve(message, fds);
    } catch (error) {
      this.#ended = true;
      throw error;
    } finally {
      fds.close();
    }
  }

  /** Carries a kick of ring `index`; ignored where the ring is not in use. */
  kick(index: number): void {
    if (!this.#closed) this.#vrings.kick(index);
  }

  /** Looks at the rings that have no descriptor for kicks. */
  poll(): void {
    if (!this.#closed) this.#vrings.poll();
  }

  /**
   * Ends the session: stops the queues, resets the device and gives back every descriptor and
   * mapping. Guest memory is not touched after this returns.
   */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#ended = true;
    if (this.#features !== null && !this.#memoryCame) {
      // A front-end whose memory cannot be shared starts its driver all the same, and says nothing.
      this.device.diagnostics.fault(
        "vhost_user_no_memory",
        () =>
          "a driver was ready, but no guest memory was shared: the front-end needs memory that can be (QEMU: memory-backend-memfd with share=on, named by -machine memory-backend=)",
      );
    }
    this.device.reset();
    this.#logging.close();
    this.#inflight.release();
    this.device.connect(null);
    this.device.setMemory(new GuestMemory([]));
    for (const region of this.#table.regions) region.mapping.release();
    this.#table = new MemoryTable();
    this.#vrings.close();
    if (this.#hasChannel) this.#ports.setBackendChannel(-1);
    this.#hasChannel = false;
  }

  /** Tells the driver that queue `index` has used buffers; called by the device. */
  interrupt(index: number): void {
    this.#vrings.interrupt(index);
  }

  /** Tells the front-end that the configuration has changed; called by the device. */
  configChanged(): void {
    if (this.#hasChannel && this.#has(VHOST_USER_PROTOCOL_F_CONFIG)) {
      this.#ports.sendBackendRequest(
        encodeRequest(VHOST_USER_BACKEND_CONFIG_CHANGE_MSG),
      );
    }
  }

  /** Tells the front-end that queue `index` is broken; called by the device. */
  queueBroken(index: number, _error: RingError): void {
    if (this.#vrings.hasErr(index)) this.#ports.signalErr(index);
    else this.#sendInBand(VHOST_USER_BACKEND_VRING_ERR, index);
  }

  #sendInBand(request: number, index: number): void {
    if (!this.#has(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)) return;
    if (!this.#hasChannel) return;
    this.#ports.sendBackendRequest(
      encodeRequest(request, encodeVringState({ index, num: 0 })),
    );
  }

  #has(bit: number): boolean {
    return (this.#protocolFeatures & featureMask(bit)) !== 0n;
  }

  #serve(message: VhostUserMessage, fds: ReceivedFds): void {
    const { request, flags } = message;
    try {
      if ((flags & VHOST_USER_REPLY_FLAG) !== 0) {
        throw new VhostUserError(
          "REPLY_FLAG_SET",
          "Header",
          `Cannot serve request ${request}: it is marked as a reply`,
        );
      }
      const reply = this.#handle(message, fds);
      const unused = fds.close();
      if (unused !== 0) {
        this.#fault(
          "UNEXPECTED_FD",
          () => `request ${request} brought ${unused} descriptors too many`,
        );
      }
      if (reply !== null) this.#reply(request, reply);
      else this.#acknowledge(message, 0);
    } catch (error) {
      if (!(error instanceof VhostUserError)) throw error;
      this.#fault(error.code, () => error.message);
      if (request === VHOST_USER_GET_CONFIG) {
        // An empty payload stands for a refusal.
        this.#ports.reply(encodeReply(request), []);
        return;
      }
      if (
        request === VHOST_USER_GET_INFLIGHT_FD &&
        this.#has(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)
      ) {
        // The front-end waits for a reply; of no bytes, it says that there is none to have.
        const none = {
          mmapSize: 0,
          mmapOffset: 0,
          numQueues: 0,
          queueSize: 0,
        };
        this.#ports.reply(encodeReply(request, encodeInflight(none)), []);
        return;
      }
      if (request === VHOST_USER_GET_VRING_BASE) {
        // There is no reply that says no, and the front-end waits for one.
        throw new VhostUserError(
          error.code,
          error.section,
          error.message,
          true,
        );
      }
      if (
        request === VHOST_USER_SET_LOG_BASE &&
        this.#has(VHOST_USER_PROTOCOL_F_LOG_SHMFD)
      ) {
        // The front-end waits for a reply, whether it asked for one or not.
        this.#ports.reply(encodeReply(request, encodeU64(1)), []);
      } else this.#acknowledge(message, 1);
      if (error.fatal) throw error;
    }
  }

  #reply(request: number, payload: Uint8Array): void {
    const fd = this.#replyFd;
    this.#replyFd = -1;
    const message = encodeReply(request, payload);
    if (fd < 0) return this.#ports.reply(message, []);
    try {
      this.#ports.reply(message, [fd]);
    } finally {
      this.#ports.closeFd(fd);
    }
  }

  #acknowledge({ request, flags }: VhostUserMessage, result: number): void {
    if ((flags & VHOST_USER_NEED_REPLY_FLAG) === 0) return;
    if (!this.#has(VHOST_USER_PROTOCOL_F_REPLY_ACK)) return;
    this.#ports.reply(encodeReply(request, encodeU64(result)), []);
  }

  #fault(code: string, text: () => string): void {
    this.device.diagnostics.fault(`vhost_user_${code.toLowerCase()}`, text);
  }

  // Returns the payload of the request's own reply, or null where it has none.
  #handle(message: VhostUserMessage, fds: ReceivedFds): Uint8Array | null {
    const { request, payload } = message;
    switch (request) {
      case VHOST_USER_GET_FEATURES:
        return encodeU64(this.device.offeredFeatures | SESSION_FEATURES);
      case VHOST_USER_SET_FEATURES:
        this.#setFeatures(parseBits(payload));
        return null;
      case VHOST_USER_GET_PROTOCOL_FEATURES:
        return encodeU64(this.offeredProtocolFeatures);
      case VHOST_USER_SET_PROTOCOL_FEATURES:
        this.#setProtocolFeatures(parseBits(payload));
        return null;
      case VHOST_USER_SET_OWNER:
      case VHOST_USER_RESET_OWNER:
        return null;
      case VHOST_USER_RESET_DEVICE:
        this.device.reset();
        this.#vrings.forgetAll();
        this.#inflight.release();
        this.#forgetFeatures();
        return null;
      case VHOST_USER_SET_MEM_TABLE:
        this.#setMemTable(payload, fds);
        return null;
      case VHOST_USER_GET_MAX_MEM_SLOTS:
        return encodeU64(MAX_MEM_SLOTS);
      case VHOST_USER_ADD_MEM_REG:
        this.#addMemReg(payload, fds);
        return null;
      case VHOST_USER_REM_MEM_REG:
        this.#need(
          VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
          "VHOST_USER_REM_MEM_REG",
        );
        this.#moveTo(this.#table.without(parseMemoryRegion(payload)));
        return null;
      case VHOST_USER_SET_VRING_NUM:
        this.#vrings.setSize(parseVringState(payload));
        return null;
      case VHOST_USER_SET_LOG_BASE:
        this.#setLogBase(payload, fds);
        return encodeU64(0);
      case VHOST_USER_SET_LOG_FD:
        // Telling the front-end of what was logged is optional, and not done: nothing has to be kept.
        fds.expect(1, "VHOST_USER_SET_LOG_FD");
        this.#ports.closeFd(fds.take());
        return null;
      case VHOST_USER_GET_INFLIGHT_FD:
        return this.#getInflight(payload);
      case VHOST_USER_SET_INFLIGHT_FD:
        this.#setInflight(payload, fds);
        return null;
      case VHOST_USER_SET_VRING_ADDR: {
        const addresses = parseVringAddresses(payload);
        this.#vrings.setAddresses(addresses);
        this.#logging.ringChanged(addresses.index);
        return null;
      }
      case VHOST_USER_SET_VRING_BASE:
        this.#vrings.setBase(parseVringState(payload));
        return null;
      case VHOST_USER_GET_VRING_BASE: {
        const { index } = parseVringState(payload);
        const num = this.#vrings.getBase(index);
        return encodeVringState({ index, num });
      }
      case VHOST_USER_SET_VRING_KICK:
      case VHOST_USER_SET_VRING_CALL:
      case VHOST_USER_SET_VRING_ERR:
        this.#setVringFd(request, payload, fds);
        return null;
      case VHOST_USER_SET_VRING_ENABLE:
        this.#vrings.setEnabled(parseVringState(payload));
        if (
          this.#logging.wanted && !this.#logging.hasLog &&
          this.#vrings.anyActive
        ) {
          this.#fault(
            "NO_LOG",
            () =>
              "VHOST_F_LOG_ALL is accepted, and rings are used without a log: what is written now is not logged",
          );
        }
        return null;
      case VHOST_USER_VRING_KICK:
        this.#vringKick(payload);
        return null;
      case VHOST_USER_GET_QUEUE_NUM:
        return encodeU64(this.device.queueCount);
      case VHOST_USER_SET_BACKEND_REQ_FD: {
        const section = "VHOST_USER_SET_BACKEND_REQ_FD";
        this.#need(VHOST_USER_PROTOCOL_F_BACKEND_REQ, section);
        fds.expect(1, section);
        this.#hasChannel = false;
        this.#ports.setBackendChannel(fds.take());
        this.#hasChannel = true;
        return null;
      }
      case VHOST_USER_GET_CONFIG:
        return this.#getConfig(payload);
      case VHOST_USER_SET_CONFIG:
        this.#setConfig(payload);
        return null;
      case VHOST_USER_GET_STATUS:
        return encodeU64(this.device.status);
      case VHOST_USER_SET_STATUS:
        this.#setStatus(parseU64(payload));
        return null;
      default:
        throw new VhostUserError(
          "UNKNOWN_REQUEST",
          "Front-end message types",
          `Cannot serve request ${request}: it is unknown, or was not offered`,
        );
    }
  }

  #need(bit: number, section: string): void {
    if (this.#has(bit)) return;
    throw new VhostUserError(
      "NOT_NEGOTIATED",
      section,
      `Cannot serve ${section}: protocol feature ${bit} was not negotiated`,
    );
  }

  #setProtocolFeatures(bits: bigint): void {
    const section = "VHOST_USER_SET_PROTOCOL_FEATURES";
    const unknown = bits & ~this.offeredProtocolFeatures;
    if (unknown !== 0n) {
      throw new VhostUserError(
        "BAD_PROTOCOL_FEATURES",
        section,
        `Cannot take protocol features 0x${bits.toString(16)}: 0x${
          unknown.toString(16)
        } were not offered`,
      );
    }
    const inband = featureMask(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
    const needed = featureMask(VHOST_USER_PROTOCOL_F_BACKEND_REQ) |
      featureMask(VHOST_USER_PROTOCOL_F_REPLY_ACK);
    if ((bits & inband) !== 0n && (bits & needed) !== needed) {
      throw new VhostUserError(
        "BAD_PROTOCOL_FEATURES",
        "In-band notifications",
        "Cannot take in-band notifications without BACKEND_REQ and REPLY_ACK",
        true,
      );
    }
    this.#protocolFeatures = bits;
  }

  #setFeatures(bits: bigint): void {
    const section = "VHOST_USER_SET_FEATURES";
    const features = bits & ~SESSION_FEATURES;
    const problem = this.device.featureProblem(features);
    if (problem !== null) {
      throw new VhostUserError(
        "BAD_FEATURES",
        section,
        `Cannot go on: ${problem}`,
        true,
      );
    }
    if (this.#features !== null && (bits ^ this.#features) === LOG_ALL) {
      this.#setLogAll(bits);
    } else if (bits !== this.#features) {
      if (this.#vrings.anyActive) {
        throw new VhostUserError(
          "RING_RUNNING",
          section,
          `Cannot change the features to 0x${
            features.toString(16)
          }: a ring is running and enabled`,
        );
      }
      if (this.#features !== null) this.#vrings.stopAll();
      if ((this.device.status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
        this.device.renegotiate();
      }
      this.device.setFeatures(features);
      this.#features = bits;
      this.#vrings.disabledAtFirst = (bits & PROTOCOL_FEATURES) !== 0n;
      this.#vrings.ready = true;
      this.#logging.setWanted((bits & LOG_ALL) !== 0n);
    }
    if (!this.#has(VHOST_USER_PROTOCOL_F_STATUS)) this.#acceptFeatures();
    this.#vrings.startComplete();
  }

  /**
   * Starts or stops logging under running rings, as a front-end does that begins or ends a migration.
   * It has given the log before; a front-end that starts its rings in mid-migration gives it after.
   */
  #setLogAll(bits: bigint): void {
    const wanted = (bits & LOG_ALL) !== 0n;
    if (wanted && !this.#logging.hasLog && this.#vrings.anyActive) {
      throw new VhostUserError(
        "NO_LOG",
        "Migration",
        "Cannot log writes to guest memory: rings are running, and there is no log",
      );
    }
    this.#features = bits;
    this.#logging.setWanted(wanted);
  }

  #forgetFeatures(): void {
    this.#features = null;
    this.#vrings.ready = false;
    this.#logging.setWanted(false);
  }

  /**
   * The session can't go on in the old log: the front-end, which may not look at the reply, reads it no
   * more. Without any, VHOST_F_LOG_ALL is refused later; where it is in force, the session ends.
   */
  #setLogBase(payload: Uint8Array, fds: ReceivedFds): void {
    const section = "VHOST_USER_SET_LOG_BASE";
    this.#need(VHOST_USER_PROTOCOL_F_LOG_SHMFD, section);
    try {
      const { size, offset } = parseLog(payload);
      fds.expect(1, section);
      if (size === 0) {
        throw new VhostUserError(
          "BAD_VALUE",
          section,
          "Cannot take the log: it is empty",
        );
      }
      this.#logging.setLog(this.#ports.map(fds.take(), size, offset));
    } catch (error) {
      if (!(error instanceof VhostUserError)) throw error;
      if (!this.#logging.active) {
        this.#logging.setLog(null);
        throw error;
      }
      const { code, message } = error;
      throw new VhostUserError(code, section, message, true);
    }
  }

  /** Format of rings that start now; null before SET_FEATURES, when it is open. */
  get #ringFormat(): RingFormat | null {
    return this.#features === null ? null : this.device.ringFormat;
  }

  #getInflight(payload: Uint8Array): Uint8Array {
    this.#need(
      VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
      "VHOST_USER_GET_INFLIGHT_FD",
    );
    const { description, fd } = this.#inflight.allocate(
      payload,
      this.#ringFormat,
      this.device.queueCount,
    );
    this.#replyFd = fd;
    return encodeInflight(description);
  }

  /** Rings that are disabled are stopped, as they are for anything else that they start with. */
  #setInflight(payload: Uint8Array, fds: ReceivedFds): void {
    const section = "VHOST_USER_SET_INFLIGHT_FD";
    this.#need(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD, section);
    if (this.#vrings.anyActive) {
      throw new VhostUserError(
        "RING_RUNNING",
        section,
        "Cannot go over to other in-flight regions: a ring is running and enabled",
      );
    }
    const area = this.#inflight.map(
      payload,
      fds,
      this.#ringFormat,
      this.device.queueCount,
    );
    this.#vrings.stopDisabled();
    this.#inflight.moveTo(area);
  }

  // Without VHOST_USER_PROTOCOL_F_STATUS nobody tells the status: it follows from what is done.
  #acceptFeatures(): void {
    const { device } = this;
    if ((device.status & VIRTIO_CONFIG_S_FEATURES_OK) === 0) {
      device.setStatus(
        device.status | VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
          VIRTIO_CONFIG_S_FEATURES_OK,
      );
    }
    if (!this.#has(VHOST_USER_PROTOCOL_F_STATUS)) {
      device.setStatus(device.status | VIRTIO_CONFIG_S_DRIVER_OK);
    }
  }

  /**
   * A status of 0 is no reset of the model here: QEMU writes it at each stop of the machine, and the
   * driver goes on after that. A driver that is new is told by its rings.
   */
  #setStatus(status: number): void {
    const section = "VHOST_USER_SET_STATUS";
    this.#need(VHOST_USER_PROTOCOL_F_STATUS, section);
    if (status > 0xff) {
      throw new VhostUserError(
        "BAD_STATUS",
        section,
        `Cannot set the status to 0x${status.toString(16)}: it is one byte`,
      );
    }
    if (status === 0) {
      this.#vrings.stopAll();
      this.device.renegotiate();
      this.#forgetFeatures();
      return;
    }
    this.device.setStatus(status);
    if (
      (status & ~this.device.status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0
    ) {
      throw new VhostUserError(
        "BAD_FEATURES",
        section,
        "Cannot set FEATURES_OK: no lawful features were accepted",
      );
    }
  }

  #setVringFd(
    request: number,
    payload: Uint8Array,
    fds: ReceivedFds,
  ): void {
    const section = request === VHOST_USER_SET_VRING_KICK
      ? "VHOST_USER_SET_VRING_KICK"
      : request === VHOST_USER_SET_VRING_CALL
      ? "VHOST_USER_SET_VRING_CALL"
      : "VHOST_USER_SET_VRING_ERR";
    const value = parseU64(payload);
    if (value > (VHOST_USER_VRING_NOFD_MASK | VHOST_USER_VRING_IDX_MASK)) {
      throw new VhostUserError(
        "BAD_VALUE",
        section,
        `Cannot use 0x${value.toString(16)}: bits above bit 8 are set`,
      );
    }
    const index = value & VHOST_USER_VRING_IDX_MASK;
    this.#vrings.checkIndex(index, section);
    const without = (value & VHOST_USER_VRING_NOFD_MASK) !== 0;
    if (!without) fds.expect(1, section);
    const fd = without ? -1 : fds.take();
    if (request === VHOST_USER_SET_VRING_KICK) this.#vrings.setKick(index, fd);
    else if (request === VHOST_USER_SET_VRING_CALL) {
      this.#vrings.setCall(index, fd);
    } else this.#vrings.setErr(index, fd);
  }

  #vringKick(payload: Uint8Array): void {
    const section = "VHOST_USER_VRING_KICK";
    this.#need(VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS, section);
    const { index, num } = parseVringState(payload);
    this.#vrings.checkIndex(index, section);
    if (num !== 0) {
      throw new VhostUserError(
        "BAD_VALUE",
        section,
        `Cannot kick ring ${index}: num is ${num}, not 0`,
      );
    }
    this.#vrings.start(index);
    this.#vrings.kick(index);
  }

  #setMemTable(payload: Uint8Array, fds: ReceivedFds): void {
    const descriptions = parseMemoryTable(payload);
    checkRegions(descriptions, VHOST_MEMORY_BASELINE_NREGIONS);
    fds.expect(descriptions.length, "VHOST_USER_SET_MEM_TABLE");
    const regions: MappedRegion[] = [];
    try {
      for (const description of descriptions) {
        regions.push(this.#map(description, fds.take()));
      }
    } catch (error) {
      for (const { mapping } of regions) mapping.release();
      throw error;
    }
    this.#moveTo(new MemoryTable(regions));
  }

  #addMemReg(payload: Uint8Array, fds: ReceivedFds): void {
    const section = "VHOST_USER_ADD_MEM_REG";
    this.#need(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS, section);
    const description = parseMemoryRegion(payload);
    checkRegions(
      [...this.#table.regions.map((region) => region.description), description],
      MAX_MEM_SLOTS,
    );
    fds.expect(1, section);
    this.#moveTo(this.#table.with(this.#map(description, fds.take())));
  }

  #map(description: MemoryRegionDescription, fd: number): MappedRegion {
    const { size, mmapOffset } = description;
    return { description, mapping: this.#ports.map(fd, size, mmapOffset) };
  }

  // Old mappings are released only when nothing looks into them any more.
  #moveTo(table: MemoryTable): void {
    const old = this.#table;
    if (table.regions.length > 0) this.#memoryCame = true;
    this.#vrings.leaveMemory(table);
    this.device.setMemory(table.memory);
    this.#table = table;
    this.#vrings.table = table;
    for (const region of old.regions) {
      if (!table.regions.includes(region)) region.mapping.release();
    }
    this.#vrings.startComplete();
  }

  #getConfig(payload: Uint8Array): Uint8Array {
    const section = "VHOST_USER_GET_CONFIG";
    this.#need(VHOST_USER_PROTOCOL_F_CONFIG, section);
    const access = parseConfig(payload);
    const { offset, size, flags } = access;
    const space = this.device.model.configSpace();
    if (size === 0 || offset + size > space.length) {
      throw badConfigAccess(section, "read", offset, size, space.length);
    }
    const bytes = space.subarray(offset, offset + size);
    return encodeConfig({ offset, size, flags, bytes });
  }

  // No field is writable; the target of a migration may be given what it has already.
  #setConfig(payload: Uint8Array): void {
    const section = "VHOST_USER_SET_CONFIG";
    this.#need(VHOST_USER_PROTOCOL_F_CONFIG, section);
    const { offset, size, flags, bytes } = parseConfig(payload);
    const space = this.device.model.configSpace();
    const own = space.subarray(offset, offset + size);
    const same = bytes.length === size && own.length === size &&
      bytes.every((byte, i) => byte === own[i]);
    if (flags !== VHOST_USER_CONFIG_TYPE_MIGRATION || !same) {
      throw badConfigAccess(section, "write", offset, size, space.length);
    }
  }
}

function badConfigAccess(
  section: string,
  action: string,
  offset: number,
  size: number,
  length: number,
): VhostUserError {
  return new VhostUserError(
    "BAD_CONFIG_ACCESS",
    section,
    `Cannot ${action} ${size} bytes at ${offset} of the configuration space: it has ${length} and is read-only`,
  );
}

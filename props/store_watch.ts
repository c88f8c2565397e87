/**
 * A look at what code reads and writes in some buffers, which can be stopped after any store.
 *
 * @module
 */

/** The end of a device, after a store. */
export class Stopped extends Error {}

const ARRAYS = ["Uint8Array", "Uint16Array", "Uint32Array"] as const;
/** What stores and returns what stood there. */
const EXCHANGES = [
  "add",
  "and",
  "compareExchange",
  "exchange",
  "or",
  "sub",
  "xor",
] as const;
/** As it is outside of `during()`. */
const RealDataView = DataView;
type Global = Record<string, unknown>;

function isSetter(key: string | symbol): boolean {
  return typeof key === "string" && key.startsWith("set");
}

function isIndex(key: string): boolean {
  const first = key.charCodeAt(0);
  return first >= 48 && first <= 57;
}

/** Counts loads from and stores to buffers, by whatever typed arrays are made over them in `during()`. */
export class StoreWatch {
  /** Loads so far. */
  loads = 0;
  /** Stores so far. */
  stores = 0;
  /** After how many further stores {@link Stopped} is thrown. */
  left: number = Infinity;
  /** Called after each store. */
  onStore: () => void = () => {};
  /** Stores by `DataView` are seen, too. */
  dataViews = false;
  readonly #buffers: ReadonlySet<unknown>;
  readonly #real: WeakMap<object, object> = new WeakMap();

  /** Watches `buffers`. */
  constructor(...buffers: ArrayBufferLike[]) {
    this.#buffers = new Set(buffers);
  }

  /** Runs a piece of a device, which has made all its arrays in such pieces. */
  during<T>(body: () => T): T {
    const world = globalThis as unknown as Global;
    const names = this.dataViews ? [...ARRAYS, "DataView"] : ARRAYS;
    const saved = names.map((name) => world[name]);
    for (const name of names) {
      world[name] = new Proxy(world[name] as new () => object, {
        construct: (target, args) => {
          const array = Reflect.construct(target, args) as object;
          return this.#buffers.has(args[0]) ? this.#spy(array) : array;
        },
      });
    }
    const { load, store } = Atomics;
    const atomics = Atomics as unknown as Global;
    const exchanges = EXCHANGES.map((name) => atomics[name]);
    for (const [i, name] of EXCHANGES.entries()) {
      const exchange = exchanges[i] as (...args: unknown[]) => unknown;
      atomics[name] = (array: Uint16Array, ...rest: unknown[]) => {
        const real = this.#real.get(array);
        const before = exchange(real ?? array, ...rest);
        if (real !== undefined) this.#stored();
        return before;
      };
    }
    atomics.load = (array: Uint16Array, index: number) => {
      const real = this.#real.get(array);
      if (real === undefined) return load(array, index);
      this.loads++;
      return load(real as Uint16Array, index);
    };
    atomics.store = (array: Uint16Array, index: number, value: number) => {
      const real = this.#real.get(array);
      store((real ?? array) as Uint16Array, index, value);
      if (real !== undefined) this.#stored();
      return value;
    };
    try {
      return body();
    } finally {
      for (const [i, name] of names.entries()) world[name] = saved[i];
      atomics.load = load;
      atomics.store = store;
      for (const [i, name] of EXCHANGES.entries()) atomics[name] = exchanges[i];
    }
  }

  #stored(): void {
    this.stores++;
    this.onStore();
    if (--this.left <= 0) {
      this.left = Infinity;
      throw new Stopped();
    }
  }

  #spy(array: object): object {
    const spy = new Proxy(array, {
      get: (target, key) => {
        const value = Reflect.get(target, key, target) as unknown;
        if (typeof key === "string" && isIndex(key)) this.loads++;
        if (typeof value !== "function") return value;
        if (!(target instanceof RealDataView) || !isSetter(key)) {
          return value.bind(target);
        }
        return (...args: unknown[]) => {
          value.apply(target, args);
          this.#stored();
        };
      },
      set: (target, key, value) => {
        Reflect.set(target, key, value, target);
        this.#stored();
        return true;
      },
    });
    this.#real.set(spy, array);
    return spy;
  }
}

/** A benchmark that a file registers by `Deno.bench()`. */
export type Registered = {
  name: string;
  group: string;
  baseline: boolean;
  fn: () => void;
};

/** Imports files of benchmarks and returns what they register, without measuring it. */
export async function registered(
  load: () => Promise<void>,
): Promise<Registered[]> {
  const benches: Registered[] = [];
  const { bench } = Deno;
  const note = (
    name: string,
    options: { group: string; baseline?: boolean },
    fn: () => void,
  ) => {
    const { group, baseline = false } = options;
    benches.push({ name, group, baseline, fn });
  };
  Object.assign(Deno, { bench: note });
  try {
    await load();
  } finally {
    Object.assign(Deno, { bench });
  }
  return benches;
}

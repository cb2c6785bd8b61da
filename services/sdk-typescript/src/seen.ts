/**
 * How far a client has seen the regions. Answers say it and reads bring it along, so that no read with SESSION shows less than an earlier
 * answer did, whichever gateway and replica gives it.
 */

/** The header that carries it: `{region}={incarnation}.{index}.{time}`, with commas between. */
export const SEEN = "tidewall-seen";

interface Come {
  readonly incarnation: bigint;
  readonly index: bigint;
  readonly time: bigint;
}

function both(one: Come, other: Come): Come {
  if (one.incarnation !== other.incarnation) {
    // Times of different incarnations cannot be compared.
    return one.incarnation > other.incarnation ? one : other;
  }
  const larger = (a: bigint, b: bigint) => (a > b ? a : b);
  return { ...one, index: larger(one.index, other.index), time: larger(one.time, other.time) };
}

/** Answers of calls that run at the same time come in any order. */
export class Seen {
  private readonly regions = new Map<string, Come>();

  /** Notes what the headers of an answer say. */
  note(headers: Headers): void {
    for (const part of headers.get(SEEN)?.split(",") ?? []) {
      // What a later service says in other words is left out.
      const [, region, ...numbers] = /^\s*([^=]+)=(\d+)\.(\d+)\.(\d+)(?:\.|\s*$)/.exec(part) ?? [];
      const [incarnation, index, time] = numbers.map(BigInt);
      if (region === undefined || incarnation === undefined || index === undefined || time === undefined) {
        continue;
      }
      const come = { incarnation, index, time };
      this.regions.set(region, both(come, this.regions.get(region) ?? come));
    }
  }

  /** What a read brings along; empty when nothing was seen yet. */
  text(): string {
    return [...this.regions].map(([region, { incarnation, index, time }]) => `${region}=${incarnation}.${index}.${time}`).join(",");
  }
}

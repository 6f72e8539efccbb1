import assert from "node:assert/strict";
import { test } from "node:test";

import { halfToNumber, innerProduct, rowsOf } from "../src/tensor.js";

test("float32 rows are read at any alignment", () => {
  const message = Buffer.alloc(3 + 16); // the numbers begin at 3, no multiple of 4
  [1.5, -2.25, 0.1, 3e38].forEach((value, i) => message.writeFloatLE(value, 3 + 4 * i));
  const tensor = { dtype: "DATA_TYPE_FLOAT32", rows: 2, dim: 2, data: message.subarray(3) } as const;
  assert.deepEqual(rowsOf(tensor), [Float32Array.of(1.5, -2.25), Float32Array.of(0.1, 3e38)]);
});

test("a length that does not fit is refused", () => {
  const tensor = { dtype: "DATA_TYPE_FLOAT16", rows: 1, dim: 2, data: Buffer.alloc(8) } as const;
  assert.throws(() => rowsOf(tensor), /1 x 2 numbers of 2 bytes has 8 bytes/);
});

test("float16", () => {
  const known: [number, number][] = [
    [0x3c00, 1],
    [0xc000, -2],
    [0x7bff, 65504],
    [0x0400, 2 ** -14],
    [0x03ff, 1023 * 2 ** -24], // subnormal
    [0x0001, 2 ** -24],
    [0x8000, -0],
    [0x7c00, Infinity],
    [0xfc00, -Infinity],
    [0x7e00, NaN],
  ];
  for (const [bits, value] of known) assert.ok(Object.is(halfToNumber(bits), value), bits.toString(16));
});

test("the inner product is rounded once", () => {
  // 1e8 + 1 - 1e8: a float32 sum would lose the 1.
  assert.equal(innerProduct(Float32Array.of(1e8, 1, -1e8), Float32Array.of(1, 1, 1)), 1);
  assert.throws(() => innerProduct(Float32Array.of(1), Float32Array.of(1, 2)), RangeError);
});

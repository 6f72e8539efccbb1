/** Embeddings: little-endian bytes on the wire, a Float32Array a row here. */
import type { Tensor__Output } from "../gen/narrows/v1/Tensor.js";

/** The rows of a tensor as float32; float16 is widened, which is exact. Throws where the length does not fit. */
export function rowsOf(tensor: Tensor__Output): Float32Array[] {
  const { rows, dim, data } = tensor;
  const half = tensor.dtype === "DATA_TYPE_FLOAT16";
  const size = half ? 2 : 4;
  if (data.length !== rows * dim * size) {
    throw new RangeError(`a tensor of ${rows} x ${dim} numbers of ${size} bytes has ${data.length} bytes`);
  }
  // The bytes lie anywhere in the received message, but a Float32Array must begin at a multiple of 4: a DataView
  // reads them where they are, whatever the alignment, and little-endian on every machine.
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  return Array.from({ length: rows }, (_, row) =>
    Float32Array.from({ length: dim }, (_, column) => {
      const offset = (row * dim + column) * size;
      return half ? halfToNumber(view.getUint16(offset, true)) : view.getFloat32(offset, true);
    }),
  );
}

/** The number that the 16 bits of an IEEE 754 binary16 stand for. */
export function halfToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** The inner product, summed in float64 and rounded once to float32, as the server's scores are. */
export function innerProduct(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) throw new RangeError(`${a.length} numbers against ${b.length}`);
  return Math.fround(a.reduce((sum, value, i) => sum + value * b[i]!, 0));
}

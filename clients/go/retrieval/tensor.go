package retrieval

import (
	"encoding/binary"
	"fmt"
	"math"

	pb "narrows/gen/narrows/v1"
)

// Rows reads a tensor's little-endian bytes: one []float32 a row. Float16 is widened, which is exact.
func Rows(tensor *pb.Tensor) ([][]float32, error) {
	data, count, dim := tensor.GetData(), int(tensor.GetRows()), int(tensor.GetDim())
	half := tensor.GetDtype() == pb.DataType_DATA_TYPE_FLOAT16
	size := 4
	if half {
		size = 2
	}
	if len(data) != count*dim*size {
		return nil, fmt.Errorf("a tensor of %d x %d numbers of %d bytes has %d bytes", count, dim, size, len(data))
	}
	rows := make([][]float32, count)
	for row := range rows {
		rows[row] = make([]float32, dim)
		for column := range rows[row] {
			at := data[(row*dim+column)*size:]
			if half {
				rows[row][column] = halfToFloat(binary.LittleEndian.Uint16(at))
			} else {
				rows[row][column] = math.Float32frombits(binary.LittleEndian.Uint32(at))
			}
		}
	}
	return rows, nil
}

// halfToFloat returns the number that the 16 bits of an IEEE 754 binary16 stand for.
func halfToFloat(bits uint16) float32 {
	exponent, fraction := int(bits>>10&0x1f), float64(bits&0x3ff)
	value := math.Ldexp(1024+fraction, exponent-25)
	switch {
	case exponent == 0:
		value = math.Ldexp(fraction, -24)
	case exponent == 31 && fraction == 0:
		value = math.Inf(1)
	case exponent == 31:
		value = math.NaN()
	}
	if bits&0x8000 != 0 {
		value = math.Copysign(value, -1)
	}
	return float32(value)
}

// InnerProduct sums in float64 and rounds once to float32, as the server's scores are. The vectors are of one length.
func InnerProduct(a, b []float32) float32 {
	sum := 0.0
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return float32(sum)
}

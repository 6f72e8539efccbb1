package retrieval

import (
	"math"
	"reflect"
	"testing"

	pb "narrows/gen/narrows/v1"
)

func TestRowsAreReadLittleEndian(t *testing.T) {
	data := []byte{0, 0, 0xc0, 0x3f, 0, 0, 0x10, 0xc0} // 1.5, -2.25
	rows, err := Rows(&pb.Tensor{Dtype: pb.DataType_DATA_TYPE_FLOAT32, Rows: 2, Dim: 1, Data: data})
	if err != nil || !reflect.DeepEqual(rows, [][]float32{{1.5}, {-2.25}}) {
		t.Fatal(rows, err)
	}
}

func TestALengthThatDoesNotFitIsRefused(t *testing.T) {
	if _, err := Rows(&pb.Tensor{Dtype: pb.DataType_DATA_TYPE_FLOAT16, Rows: 1, Dim: 2, Data: make([]byte, 8)}); err == nil {
		t.Fatal("8 bytes are not 1 x 2 numbers of 2 bytes")
	}
}

func TestFloat16(t *testing.T) {
	for bits, value := range map[uint16]float64{
		0x3c00: 1,
		0xc000: -2,
		0x7bff: 65504,
		0x0400: math.Ldexp(1, -14),
		0x03ff: math.Ldexp(1023, -24), // subnormal
		0x0001: math.Ldexp(1, -24),
		0x8000: math.Copysign(0, -1),
		0x7c00: math.Inf(1),
		0xfc00: math.Inf(-1),
	} {
		if got := halfToFloat(bits); math.Float32bits(got) != math.Float32bits(float32(value)) {
			t.Errorf("%#04x: %v, not %v", bits, got, value)
		}
	}
	if got := halfToFloat(0x7e00); got == got {
		t.Error("0x7e00 is not a number, but", got)
	}
}

func TestTheInnerProductIsRoundedOnce(t *testing.T) {
	// 1e8 + 1 - 1e8: a float32 sum would lose the 1.
	if got := InnerProduct([]float32{1e8, 1, -1e8}, []float32{1, 1, 1}); got != 1 {
		t.Fatal(got)
	}
}

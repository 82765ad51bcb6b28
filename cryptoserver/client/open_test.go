package client

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// goodDays are three days, of which the last has qualities.
func goodDays() *cryptopb.SeriesDays {
	var values []byte
	for _, v := range []int64{1, int64(meter.Null), math.MaxInt64, -1, 64, -64, -65, 8191, 8192, 1 << 40} {
		values = binary.AppendVarint(values, v)
	}
	return &cryptopb.SeriesDays{
		Day: []int32{20000, 20001, 20003}, Size: []uint32{3, 5, 2}, Values: values,
		Qualified: []uint32{2}, Quality: []byte{0, byte(meter.Estimated)},
	}
}

func TestParseDays(t *testing.T) {
	t.Parallel()
	got, err := parseDays(goodDays())
	if err != nil || len(got) != 3 {
		t.Fatal(err, got)
	}
	for i, want := range []meter.SeriesDay{
		{Day: 20000, Values: []meter.Value{1, meter.Null, math.MaxInt64}},
		{Day: 20001, Values: []meter.Value{-1, 64, -64, -65, 8191}},
		{Day: 20003, Values: []meter.Value{8192, 1 << 40}, Quality: []meter.Quality{meter.AsProvided, meter.Estimated}},
	} {
		if g := got[i]; g.Day != want.Day || !slices.Equal(g.Values, want.Values) || !slices.Equal(g.Quality, want.Quality) || (g.Quality == nil) != (want.Quality == nil) {
			t.Errorf("day %d: %v, want %v", i, g, want)
		}
	}
	if got, err := parseDays(nil); err != nil || len(got) != 0 {
		t.Errorf("no days: %v, %v", got, err)
	}
	for name, change := range map[string]func(*cryptopb.SeriesDays){
		"a day too many":          func(d *cryptopb.SeriesDays) { d.Day = append(d.Day, 1) },
		"a size too many":         func(d *cryptopb.SeriesDays) { d.Size = append(d.Size, 0) },
		"a value too many":        func(d *cryptopb.SeriesDays) { d.Values = append(d.Values, 0) },
		"a value too few":         func(d *cryptopb.SeriesDays) { d.Size[0]++ },
		"a value broken off":      func(d *cryptopb.SeriesDays) { d.Values = d.Values[:len(d.Values)-1] },
		"a value without an end":  func(d *cryptopb.SeriesDays) { d.Values[len(d.Values)-1] |= 0x80 },
		"a value of 11 bytes":     func(d *cryptopb.SeriesDays) { d.Values = append(slices.Repeat([]byte{0xff}, 10), d.Values[1:]...) },
		"sizes that overflow":     func(d *cryptopb.SeriesDays) { d.Size[0], d.Size[1] = 1<<32-1, 1<<32-1 },
		"no values":               func(d *cryptopb.SeriesDays) { d.Values = nil },
		"qualities of no day":     func(d *cryptopb.SeriesDays) { d.Qualified[0] = 3 },
		"qualities of a far day":  func(d *cryptopb.SeriesDays) { d.Qualified[0] = 1<<32 - 1 },
		"a day twice":             func(d *cryptopb.SeriesDays) { d.Qualified, d.Quality = []uint32{2, 2}, make([]byte, 4) },
		"days not in order":       func(d *cryptopb.SeriesDays) { d.Qualified, d.Quality = []uint32{2, 0}, make([]byte, 5) },
		"too few qualities":       func(d *cryptopb.SeriesDays) { d.Quality = d.Quality[:1] },
		"too many qualities":      func(d *cryptopb.SeriesDays) { d.Quality = append(d.Quality, 0) },
		"qualities, and no index": func(d *cryptopb.SeriesDays) { d.Qualified = nil },
	} {
		d := goodDays()
		change(d)
		if got, err := parseDays(d); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// FuzzParseDays: whatever a server answers, its days are refused or fit each
// other, and memory is bounded by what was sent.
func FuzzParseDays(f *testing.F) {
	good, err := proto.Marshal(goodDays())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		d := new(cryptopb.SeriesDays)
		if proto.Unmarshal(b, d) != nil {
			return
		}
		got, err := parseDays(d)
		if err != nil {
			return
		}
		var values []byte
		var quality []byte
		for i, day := range got {
			if int32(day.Day) != d.Day[i] || len(day.Values) != int(d.Size[i]) || day.Quality != nil && len(day.Quality) != len(day.Values) {
				t.Fatalf("day %d: %+v", i, day)
			}
			for _, v := range day.Values {
				values = binary.AppendVarint(values, int64(v))
			}
			for _, q := range day.Quality {
				quality = append(quality, byte(q))
			}
		}
		if len(values) > len(d.Values) || string(quality) != string(d.Quality) {
			t.Fatalf("%x of %x, %x of %x", values, d.Values, quality, d.Quality)
		}
		again, err := parseDays(&cryptopb.SeriesDays{Day: d.Day, Size: d.Size, Values: values, Qualified: d.Qualified, Quality: quality})
		if err != nil || len(again) != len(got) {
			t.Fatal(err)
		}
	})
}

// TestBlocksToWire: the columns hold what the units hold, in order.
func TestBlocksToWire(t *testing.T) {
	t.Parallel()
	units := make([]Unit, 5)
	var want []envelope.SealedBlock
	for i := range units {
		for range rand.N(4) {
			b := envelope.SealedBlock{
				Field: meter.FieldCode(rand.N(9)), Day: meter.Day(rand.N(30000)), Resolution: meter.Resolution(rand.N(5)),
				Version: rand.Uint32(), Key: rand.N(3) - 1, Ciphertext: make([]byte, rand.N(50)),
			}
			units[i].Blocks = append(units[i].Blocks, b)
			want = append(want, b)
		}
	}
	w := new(cryptopb.SealedBlocks)
	blocksToWire(w, []Unit{{Blocks: make([]envelope.SealedBlock, 30)}}) // of another call
	blocksToWire(w, units)
	n := len(want)
	if len(w.Field) != n || len(w.Day) != n || len(w.Resolution) != n || len(w.Version) != n || len(w.Key) != n || len(w.Size) != n {
		t.Fatalf("columns of another length than %d: %v", n, w)
	}
	at := 0
	for i, b := range want {
		key := uint32(b.Key)
		if b.Key == envelope.NoKey {
			key = math.MaxUint32
		}
		if w.Field[i] != uint32(b.Field) || w.Day[i] != int32(b.Day) || w.Resolution[i] != uint32(b.Resolution) || w.Version[i] != b.Version ||
			w.Key[i] != key || string(w.Ciphertexts[at:at+int(w.Size[i])]) != string(b.Ciphertext) {
			t.Errorf("block %d is %v", i, b)
		}
		at += len(b.Ciphertext)
	}
	if at != len(w.Ciphertexts) {
		t.Error("ciphertexts of no block")
	}
}

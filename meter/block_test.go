package meter

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The formats are stored: these bytes never change.
func TestBlockGoldenVectors(t *testing.T) {
	t.Parallel()
	ams := zone(t, "Europe/Amsterdam")
	spring := make([]Value, 23)
	springQ := make([]Quality, 23)
	for i := range spring {
		spring[i] = Value(i)
	}
	spring[2], springQ[2] = Null, NotAvailable
	spring[3] = -MaxInterval
	spring[22], springQ[22] = MaxInterval, Estimated

	for name, tt := range map[string]struct {
		block Block
		class Class
		want  string
	}{
		"register": {
			Block{Day: day(t, "2024-01-01"), Resolution: P1D, Start: Null, Values: []Value{6328420}, Quality: []Quality{Calculated}}, Registers,
			"01 01 03 0001 8000000000000000 0000000000609064 06",
		},
		"register not known": {
			Block{Day: day(t, "2024-01-27"), Resolution: P1D, Start: Null, Values: []Value{Null}, Quality: []Quality{AsProvided}}, Registers,
			"01 01 03 0001 8000000000000000 8000000000000000 00",
		},
		"hours of the day the clocks go forward": {
			Block{Day: day(t, "2024-03-31"), Resolution: PT1H, Start: 1828818, Values: spring, Quality: springQ}, Intervals,
			`01 02 02 0017 00000000001be7d2
			 00000000 00000001 80000000 80000001 00000004 00000005 00000006 00000007
			 00000008 00000009 0000000a 0000000b 0000000c 0000000d 0000000e 0000000f
			 00000010 00000011 00000012 00000013 00000014 00000015 7fffffff
			 0000020000000000 0000000000000000 00000000000003`,
		},
		"quarters of the day the clocks go back": {
			Block{Day: day(t, "2024-10-27"), Resolution: PT15M, Start: Null, Values: make([]Value, 100), Quality: make([]Quality, 100)}, Intervals,
			"01 02 01 0064 8000000000000000" + strings.Repeat("00", 500),
		},
	} {
		want := unhex(t, tt.want)
		got, err := AppendBlock(nil, &tt.block, tt.class, ams)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s:\n%x, %v, want\n%x", name, got, err, want)
		}
		var back Block
		if err := DecodeBlock(want, &back, tt.block.Day, tt.block.Resolution, tt.class, ams); err != nil || !sameBlock(back, tt.block) {
			t.Errorf("%s: decodes as %v, %v", name, back, err)
		}
	}
}

func sameBlock(a, b Block) bool {
	return a.Day == b.Day && a.Resolution == b.Resolution && a.Start == b.Start &&
		slices.Equal(a.Values, b.Values) && slices.Equal(a.Quality, b.Quality)
}

func intervalBlock(d Day, r Resolution, loc *time.Location) *Block {
	n := Slots(d, r, loc)
	return &Block{Day: d, Resolution: r, Start: Null, Values: make([]Value, n), Quality: make([]Quality, n)}
}

func TestAppendBlockRefuses(t *testing.T) {
	t.Parallel()
	ams := zone(t, "Europe/Amsterdam")
	d := day(t, "2024-05-05")
	register := func(v Value) *Block { return &Block{Day: d, Resolution: P1D, Values: []Value{v}} }
	interval := func(change func(b *Block)) *Block {
		b := intervalBlock(d, PT15M, ams)
		change(b)
		return b
	}
	const secret = 987654321987
	for name, tt := range map[string]struct {
		b     *Block
		class Class
	}{
		"interval beyond 32 bits":         {interval(func(b *Block) { b.Values[7] = secret }), Intervals},
		"interval just beyond":            {interval(func(b *Block) { b.Values[7] = MaxInterval + 1 }), Intervals},
		"interval that looks like null":   {interval(func(b *Block) { b.Values[7] = math.MinInt32 }), Intervals},
		"interval negative beyond":        {interval(func(b *Block) { b.Values[7] = -secret }), Intervals},
		"start beyond 18 digits":          {interval(func(b *Block) { b.Start = MaxRegister + 1 }), Intervals},
		"start negative beyond 18 digits": {interval(func(b *Block) { b.Start = -MaxRegister - 1 }), Intervals},
		"unknown quality":                 {interval(func(b *Block) { b.Quality[7] = 4 }), Intervals},
		"quality beyond":                  {interval(func(b *Block) { b.Quality[7] = 200 }), Intervals},
		"a value too few":                 {interval(func(b *Block) { b.Values = b.Values[1:] }), Intervals},
		"a value too many":                {interval(func(b *Block) { b.Values = append(b.Values, 0) }), Intervals},
		"a quality too few":               {interval(func(b *Block) { b.Quality = b.Quality[1:] }), Intervals},
		"qualities empty":                 {interval(func(b *Block) { b.Quality = []Quality{} }), Intervals},
		"the values of another day":       {interval(func(b *Block) { b.Day = day(t, "2024-03-31") }), Intervals},
		"intervals at P1D":                {interval(func(b *Block) { b.Resolution = P1D }), Intervals},
		"intervals at nothing":            {interval(func(b *Block) { b.Resolution = 0 }), Intervals},
		"intervals as registers":          {interval(func(b *Block) {}), Registers},
		"register beyond 18 digits":       {register(MaxRegister + 1), Registers},
		"register just above null":        {register(Null + 1), Registers},
		"register as intervals":           {register(1), Intervals},
		"register of no class":            {register(1), 0},
		"register at PT1H":                {&Block{Day: d, Resolution: PT1H, Values: []Value{1}}, Registers},
		"register at P1M":                 {&Block{Day: d, Resolution: P1M, Values: []Value{1}}, Registers},
		"register without a value":        {&Block{Day: d, Resolution: P1D}, Registers},
	} {
		got, err := AppendBlock([]byte("before"), tt.b, tt.class, ams)
		if !errors.Is(err, ErrBlock) || string(got) != "before" {
			t.Errorf("%s: %x, %v", name, got, err)
		} else if strings.Contains(err.Error(), fmt.Sprint(secret)) {
			t.Errorf("%s: the error tells the value: %v", name, err)
		}
	}
}

func TestDecodeBlockRefuses(t *testing.T) {
	t.Parallel()
	ams := zone(t, "Europe/Amsterdam")
	d := day(t, "2024-05-05")
	const (
		reg   = "01 01 03 0001 8000000000000000 0000000000609064 06"
		hours = 24
	)
	interval := "01 02 02 0018 0000000000000001" + strings.Repeat("00000001", hours) + strings.Repeat("00", hours)
	for name, tt := range map[string]struct {
		enc   string
		day   string
		r     Resolution
		class Class
	}{
		"nothing":                      {"", "2024-05-05", P1D, Registers},
		"cut short":                    {strings.TrimSuffix(reg, " 06"), "2024-05-05", P1D, Registers},
		"trailing byte":                {reg + "00", "2024-05-05", P1D, Registers},
		"another format":               {"02" + reg[2:], "2024-05-05", P1D, Registers},
		"another shape":                {"01 02" + reg[5:], "2024-05-05", P1D, Registers},
		"another resolution":           {"01 01 02" + reg[8:], "2024-05-05", P1D, Registers},
		"another slot count":           {strings.Replace(reg, "0001", "0002", 1), "2024-05-05", P1D, Registers},
		"register with a start":        {strings.Replace(reg, "8000000000000000", "0000000000000000", 1), "2024-05-05", P1D, Registers},
		"register out of range":        {strings.Replace(reg, "0000000000609064", "0de0b6b3a7640000", 1), "2024-05-05", P1D, Registers},
		"register out of range, below": {strings.Replace(reg, "0000000000609064", "8000000000000001", 1), "2024-05-05", P1D, Registers},
		"unknown quality":              {strings.TrimSuffix(reg, "06") + "04", "2024-05-05", P1D, Registers},
		"quality beyond":               {strings.TrimSuffix(reg, "06") + "08", "2024-05-05", P1D, Registers},
		"register opened as intervals": {reg, "2024-05-05", PT15M, Intervals},
		"register opened at P1M":       {reg, "2024-05-05", P1M, Registers},
		"intervals as registers":       {interval, "2024-05-05", P1D, Registers},
		"hours as quarters":            {interval, "2024-05-05", PT15M, Intervals},
		"hours of another day":         {interval, "2024-03-31", PT1H, Intervals},
		"start out of range":           {strings.Replace(interval, "0000000000000001", "0de0b6b3a7640000", 1), "2024-05-05", PT1H, Intervals},
		"intervals at P1D":             {interval, "2024-05-05", P1D, Intervals},
	} {
		b := Block{Day: 1, Resolution: PT1H, Start: 7, Values: []Value{42}, Quality: []Quality{Estimated}}
		if err := DecodeBlock(unhex(t, tt.enc), &b, day(t, tt.day), tt.r, tt.class, ams); !errors.Is(err, ErrBlock) {
			t.Errorf("%s: accepted, %v", name, err)
		}
		if !sameBlock(b, Block{Day: 1, Resolution: PT1H, Start: 7, Values: []Value{42}, Quality: []Quality{Estimated}}) {
			t.Errorf("%s: the block changed to %v", name, b)
		}
	}
	// The vectors themselves are good.
	var b Block
	if err := errors.Join(DecodeBlock(unhex(t, reg), &b, d, P1D, Registers, ams),
		DecodeBlock(unhex(t, interval), &b, d, PT1H, Intervals, ams)); err != nil {
		t.Error(err)
	}
}

func TestBlockRoundTrip(t *testing.T) {
	t.Parallel()
	ams := zone(t, "Europe/Amsterdam")
	qualities := []Quality{AsProvided, Adjusted, NotAvailable, Estimated, Incomplete, Calculated, Temporary}
	lengths := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		class := rapid.SampledFrom([]Class{Registers, Intervals}).Draw(t, "class")
		b := Block{
			Day:        Day(rapid.SampledFrom([]Day{19800, 19813 /* 2024-03-31 */, 20023 /* 2024-10-27 */}).Draw(t, "day")),
			Resolution: P1D,
			Start:      Null,
		}
		register := rapid.OneOf(rapid.Just(Null), rapid.Map(rapid.Int64Range(int64(-MaxRegister), int64(MaxRegister)), func(v int64) Value { return Value(v) }))
		value := register
		if class == Intervals {
			b.Resolution = rapid.SampledFrom([]Resolution{PT15M, PT1H}).Draw(t, "resolution")
			b.Start = register.Draw(t, "start")
			value = rapid.OneOf(rapid.Just(Null), rapid.Map(rapid.Int64Range(int64(-MaxInterval), int64(MaxInterval)), func(v int64) Value { return Value(v) }))
		}
		n := Slots(b.Day, b.Resolution, ams)
		b.Values = rapid.SliceOfN(value, n, n).Draw(t, "values")
		b.Quality = rapid.SliceOfN(rapid.SampledFrom(qualities), n, n).Draw(t, "quality")

		enc, err := AppendBlock(nil, &b, class, ams)
		if err != nil {
			t.Fatal(err)
		}
		shape := fmt.Sprint(class, b.Resolution, n)
		if l, ok := lengths[shape]; ok && l != len(enc) {
			t.Fatalf("%s: the length tells of the content: %d and %d", shape, l, len(enc))
		}
		lengths[shape] = len(enc)
		back := Block{Values: make([]Value, 3, 200), Quality: make([]Quality, 2)}
		if err := DecodeBlock(enc, &back, b.Day, b.Resolution, class, ams); err != nil || !sameBlock(back, b) {
			t.Fatalf("%v comes back as %v, %v", b, back, err)
		}
	})
}

func TestBlockWithoutQuality(t *testing.T) {
	t.Parallel()
	ams := zone(t, "Europe/Amsterdam")
	b := intervalBlock(day(t, "2024-05-05"), PT1H, ams)
	want, err := AppendBlock(nil, b, Intervals, ams)
	if err != nil {
		t.Fatal(err)
	}
	b.Quality = nil
	dirty := bytes.Repeat([]byte{0xff}, 1000) // reused memory must not show
	if got, err := AppendBlock(dirty[:0], b, Intervals, ams); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, %v, want %x", got, err, want)
	}
}

func TestBlockCodecDoesNotAllocate(t *testing.T) {
	ams := zone(t, "Europe/Amsterdam")
	b := intervalBlock(day(t, "2024-10-27"), PT15M, ams)
	buf := make([]byte, 0, 1024)
	var back Block
	run := func() {
		enc, err := AppendBlock(buf, b, Intervals, ams)
		if err == nil {
			err = DecodeBlock(enc, &back, b.Day, PT15M, Intervals, ams)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	run()
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDecodeBlock(f *testing.F) {
	ams := zone(f, "Europe/Amsterdam")
	for _, d := range []string{"2024-03-31", "2024-05-05", "2024-10-27"} {
		for _, r := range []Resolution{PT15M, PT1H} {
			b := intervalBlock(day(f, d), r, ams)
			b.Values[1], b.Quality[1], b.Start = Null, NotAvailable, 12345
			enc, err := AppendBlock(nil, b, Intervals, ams)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(enc, int32(b.Day), byte(r), byte(Intervals))
		}
		enc, err := AppendBlock(nil, &Block{Day: day(f, d), Resolution: P1D, Values: []Value{6328420}}, Registers, ams)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(enc, int32(day(f, d)), byte(P1D), byte(Registers))
	}
	f.Fuzz(func(t *testing.T, p []byte, d int32, r, class byte) {
		var b Block
		if DecodeBlock(p, &b, Day(d), Resolution(r), Class(class), ams) != nil {
			return
		}
		if b.Day != Day(d) || b.Resolution != Resolution(r) {
			t.Fatalf("decodes as %s of %s", b.Resolution, b.Day)
		}
		again, err := AppendBlock(nil, &b, Class(class), ams)
		if err != nil || !bytes.Equal(again, p) {
			t.Fatalf("%x re-encodes as %x, %v", p, again, err)
		}
	})
}

func BenchmarkAppendBlock(b *testing.B) {
	ams := zone(b, "Europe/Amsterdam")
	block := intervalBlock(day(b, "2024-05-05"), PT15M, ams)
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := AppendBlock(buf, block, Intervals, ams); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeBlock(b *testing.B) {
	ams := zone(b, "Europe/Amsterdam")
	d := day(b, "2024-05-05")
	quarters, err := AppendBlock(nil, intervalBlock(d, PT15M, ams), Intervals, ams)
	if err != nil {
		b.Fatal(err)
	}
	register, err := AppendBlock(nil, &Block{Day: d, Resolution: P1D, Values: []Value{1}}, Registers, ams)
	if err != nil {
		b.Fatal(err)
	}
	for _, bb := range []struct {
		name  string
		enc   []byte
		r     Resolution
		class Class
	}{{"quarters", quarters, PT15M, Intervals}, {"register", register, P1D, Registers}} {
		b.Run(bb.name, func(b *testing.B) {
			var block Block
			b.ReportAllocs()
			for b.Loop() {
				if err := DecodeBlock(bb.enc, &block, d, bb.r, bb.class, ams); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

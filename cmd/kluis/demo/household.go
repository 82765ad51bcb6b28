package demo

import (
	"math"
	"time"

	"kluis/meter"
)

// household is an imaginary home whose consumption is a pure function of its
// seed and the instant, so that every run of the demo shows the same values.
type household struct {
	seed   uint64
	base   float64 // standby load, W
	peak   float64 // evening peak, W
	solar  float64 // panels, Wp; 0 for none
	gasDay float64 // gas on a cold day, m3; 0 for none
}

// noise is uniform in [0, 1), the same for the same arguments (splitmix64).
func (h household) noise(kind uint64, unix int64) float64 {
	z := h.seed ^ kind<<56 ^ uint64(unix)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	z ^= z >> 31
	return float64(z>>11) / (1 << 53)
}

const (
	noiseLoad = iota + 1
	noiseCloud
	noiseGas
	noiseAppliance
	noiseAway
)

// winter is 1 in mid-January and 0 in mid-July.
func winter(local time.Time) float64 {
	return (1 + math.Cos(2*math.Pi*float64(local.YearDay()-15)/365.25)) / 2
}

// net is the energy in Wh taken from and given to the grid in the quarter
// hour that starts at t.
func (h household) net(t time.Time) (imported, exported int64) {
	hour := float64(t.Hour()) + float64(t.Minute())/60
	load := h.base * (0.8 + 0.4*h.noise(noiseLoad, t.Unix()))
	away := h.noise(noiseAway, t.Unix()/(6*86400)) < 0.06 // a few days without anybody at home
	if !away {
		bump := func(at, width, height float64) float64 {
			d := (hour - at) / width
			return height * math.Exp(-d*d)
		}
		weekend := t.Weekday() == time.Saturday || t.Weekday() == time.Sunday
		morning := 7.3
		if weekend {
			morning = 9.2
		}
		load += bump(morning, 1.1, 0.45*h.peak) + bump(19, 2.2, h.peak*(0.7+0.5*winter(t)))
		if h.noise(noiseAppliance, t.Unix()/3600) < 0.05 {
			load += 1800 * h.noise(noiseAppliance, t.Unix())
		}
	}
	sun := 0.0
	if h.solar > 0 {
		// Day length and height of the sun at 52 degrees north, roughly.
		summer := 1 - winter(t)
		half := 3.9 + 4.4*summer // hours from noon to sunset
		x := (hour - 13.2) / half
		if x > -1 && x < 1 {
			cloud := 0.25 + 0.75*h.noise(noiseCloud, t.Unix()/10800)
			sun = h.solar * (0.25 + 0.6*summer) * math.Cos(x*math.Pi/2) * cloud
		}
	}
	wh := math.Round((load - sun) / 4)
	if wh >= 0 {
		return int64(wh), 0
	}
	return 0, int64(-wh)
}

// gas is the gas in dm3 used in the hour that starts at t.
func (h household) gas(t time.Time) int64 {
	if h.gasDay == 0 {
		return 0
	}
	heat := max(0, winter(t)*1.25-0.25) * h.gasDay / 16
	hour := t.Hour()
	if hour < 6 || hour == 23 {
		heat *= 0.1
	}
	tap := 0.0
	if (hour == 7 || hour == 19) && h.noise(noiseGas, t.Unix()) < 0.8 {
		tap = 0.12
	}
	return int64(math.Round(1000 * (heat*(0.6+0.8*h.noise(noiseGas, t.Unix()+1)) + tap)))
}

// lowTariff is the Dutch double tariff: 23:00 to 07:00 and weekends.
func lowTariff(local time.Time) bool {
	h := local.Hour()
	return h >= 23 || h < 7 || local.Weekday() == time.Saturday || local.Weekday() == time.Sunday
}

// gap says whether the meter did not report this interval.
func (h household) gap(t time.Time) bool {
	return h.noise(9, t.Unix()/10800) < 0.002
}

// meterReads are the registers of one metering point, in Wh or dm3, as they
// grow through the year.
type meterReads struct {
	importLow, importNormal, exportLow, exportNormal, gas int64
}

// dayOf simulates one local day: its blocks, with the registers at its start,
// and the registers at its end. Interval values that the meter did not report
// are null; the registers count them all the same, as a real meter does.
func (h household) dayOf(p *meter.Profile, c meter.Commodity, d meter.Day, stored meter.Resolution, reads *meterReads) map[string]*meter.Block {
	loc := p.Location()
	register := func(v int64) *meter.Block {
		return &meter.Block{Day: d, Resolution: meter.P1D, Start: meter.Null,
			Values: []meter.Value{meter.Value(v)}, Quality: []meter.Quality{meter.AsProvided}}
	}
	intervals := func(r meter.Resolution, start int64) *meter.Block {
		n := meter.Slots(d, r, loc)
		return &meter.Block{Day: d, Resolution: r, Start: meter.Value(start),
			Values: make([]meter.Value, n), Quality: make([]meter.Quality, n)}
	}
	step := 15 * time.Minute
	perSlot := 1
	if stored == meter.PT1H {
		perSlot = 4
	}
	if c == meter.Gas {
		b := map[string]*meter.Block{"gas": register(reads.gas), "gas_intervals": intervals(meter.PT1H, reads.gas)}
		t := d.Start(loc)
		for i := range b["gas_intervals"].Values {
			v := h.gas(t)
			reads.gas += v
			h.put(b["gas_intervals"], i, v, t)
			t = t.Add(time.Hour).In(loc)
		}
		return b
	}
	b := map[string]*meter.Block{
		"import_low": register(reads.importLow), "import_normal": register(reads.importNormal),
		"export_low": register(reads.exportLow), "export_normal": register(reads.exportNormal),
		"import_intervals": intervals(stored, reads.importLow+reads.importNormal),
		"export_intervals": intervals(stored, reads.exportLow+reads.exportNormal),
	}
	t := d.Start(loc)
	for i := range b["import_intervals"].Values {
		var in, out int64
		at := t
		for range perSlot {
			qin, qout := h.net(t)
			if lowTariff(t) {
				reads.importLow += qin
				reads.exportLow += qout
			} else {
				reads.importNormal += qin
				reads.exportNormal += qout
			}
			in, out = in+qin, out+qout
			t = t.Add(step).In(loc)
		}
		h.put(b["import_intervals"], i, in, at)
		h.put(b["export_intervals"], i, out, at)
	}
	return b
}

func (h household) put(b *meter.Block, i int, v int64, at time.Time) {
	switch {
	case h.gap(at):
		b.Values[i] = meter.Null
	case h.noise(8, at.Unix()/21600) < 0.002:
		b.Values[i], b.Quality[i] = meter.Value(v), meter.Estimated
	default:
		b.Values[i] = meter.Value(v)
	}
}

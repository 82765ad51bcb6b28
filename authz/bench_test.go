package authz

import (
	"encoding/binary"
	"testing"
	"time"

	"kluis/meter"
)

func BenchmarkDecide(b *testing.B) {
	p := dutch(b)
	f := story(b)
	six := []meter.FieldCode{1, 2, 3, 4, 6, 7}
	// A year of beta's on the ten facts of the story, and a file with a
	// thousand consents of others.
	crowd := func(n int) *LegalFile {
		crowded := *f
		crowded.facts = f.facts.clone()
		for i := range n {
			c := crowded.consents[0]
			c.Supplier = gamma
			binary.BigEndian.PutUint64(c.ID[:], uint64(i+1)<<32)
			crowded.consents = append(crowded.consents, c)
		}
		out, err := parseLegalFile(crowded.encode())
		if err != nil {
			b.Fatal(err)
		}
		return out
	}
	month, year := days("2025-08-01", "2025-09-01"), days("2025-01-20", "2026-01-20")
	for _, c := range []struct {
		name       string
		f          *LegalFile
		purpose    meter.Purpose
		days       meter.DayRange
		resolution meter.Resolution
	}{
		{"month", f, meter.EnergyManagement, month, 0},
		{"month/1000 consents of others", crowd(1000), meter.EnergyManagement, month, 0},
		{"month/P1M", f, meter.EnergyManagement, month, meter.P1M},
		{"bill of a year", f, meter.Billing, year, 0},
		{"switch in a year", f, meter.Switch, year, 0},
		{"year", f, meter.EnergyManagement, year, 0},
		{"year/10 consents of others", crowd(10), meter.EnergyManagement, year, 0},
		{"year/100 consents of others", crowd(100), meter.EnergyManagement, year, 0},
		{"year/1000 consents of others", crowd(1000), meter.EnergyManagement, year, 0},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			r := Request{EAN: home, Purpose: c.purpose, Days: c.days, Fields: six, Resolution: c.resolution}
			for b.Loop() {
				g, _, err := Decide(caller(beta), r, c.f, p, storyNow)
				if err != nil || g.Empty() {
					b.Fatal(err)
				}
			}
		})
	}
}

// The hot path of the cryptoserver: each block of a month is asked about.
func BenchmarkCovers190Blocks(b *testing.B) {
	g, _, err := Decide(caller(beta), Request{
		EAN: home, Purpose: meter.EnergyManagement, Days: days("2025-08-01", "2025-09-01"), Fields: []meter.FieldCode{1, 2, 3, 4, 6, 7},
	}, story(b), dutch(b), storyNow)
	if err != nil {
		b.Fatal(err)
	}
	first, last := day("2025-08-01"), day("2025-09-01")
	for b.Loop() {
		n := 0
		for _, r := range g.reads {
			for d := first; d <= last; d++ {
				if g.Covers(r.Field, d) {
					n++
				}
			}
		}
		if n != 4*32+2*31 {
			b.Fatal(n)
		}
	}
}

func BenchmarkLegalFile(b *testing.B) {
	signer := newSigner(b)
	keys := sealKeys(b, signer)
	sealed := seal(b, story(b).Payload(), signer)
	b.Run("verified before", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := keys.LegalFile(sealed); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			keys.legalFiles.Purge()
			if _, err := keys.LegalFile(sealed); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkApply(b *testing.B) {
	f := story(b)
	at := f.SealedAt().Add(time.Minute)
	for b.Loop() {
		if _, err := Apply(f, RevokeConsent{uuid(1)}, operator, at, amsterdam); err != nil {
			b.Fatal(err)
		}
	}
}

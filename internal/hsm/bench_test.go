package hsm_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"
)

// BenchmarkOpen opens batches of one metering point's month: 62 interval
// blocks under one data key, or 190 blocks under two. Uncached means that
// each batch unwraps its keys.
func BenchmarkOpen(b *testing.B) {
	world := hsmtest.New(b)
	for _, size := range []struct{ items, keys int }{{62, 1}, {190, 2}} {
		for _, cached := range []bool{true, false} {
			name := fmt.Sprintf("%d/uncached", size.items)
			if cached {
				name = fmt.Sprintf("%d/cached", size.items)
			}
			b.Run(name, func(b *testing.B) {
				s := world.Servers[0]
				if !cached {
					s.Config.CacheLifetime = time.Nanosecond
				}
				h := s.Open(b)
				keys := mintKeys(b, h, size.keys)
				items := benchItems(b, h, keys, size.items)
				b.ReportAllocs()
				for b.Loop() {
					if err := h.Opener().Open(b.Context(), keys, items); err != nil || items[0].Err != nil {
						b.Fatal(err, items[0].Err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size.items), "ns/block")
			})
		}
	}
}

// BenchmarkSeal seals a month of one metering point.
func BenchmarkSeal(b *testing.B) {
	h := hsmtest.New(b).Servers[0].Open(b)
	keys := mintKeys(b, h, 1)
	items := make([]token.Item, 62)
	for i := range items {
		items[i] = token.Item{AAD: aad(i), In: bytes.Repeat([]byte{1}, 400), Out: make([]byte, 0, 416)}
	}
	for b.Loop() {
		if err := h.Sealer().Seal(b.Context(), keys, items); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMint(b *testing.B) {
	h := hsmtest.New(b).Servers[0].Open(b)
	for b.Loop() {
		if _, err := h.Minter().Mint(b.Context(), 1, 10); err != nil {
			b.Fatal(err)
		}
	}
}

// benchItems seals blocks of a quarter-hour day's length.
func benchItems(b *testing.B, h *hsm.HSM, keys []token.WrappedKey, n int) []token.Item {
	b.Helper()
	items := make([]token.Item, n)
	for i := range items {
		items[i] = token.Item{Key: i % len(keys), AAD: aad(i), In: bytes.Repeat([]byte{byte(i)}, 400), Out: make([]byte, 0, 416)}
	}
	if err := h.Sealer().Seal(b.Context(), keys, items); err != nil {
		b.Fatal(err)
	}
	for i := range items {
		items[i].In, items[i].Out = items[i].Out, make([]byte, 0, 400)
	}
	return items
}

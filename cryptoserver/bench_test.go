package cryptoserver_test

import (
	"context"
	"log/slog"
	"testing"

	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/token"
	"kluis/meter"
)

// month is the request that docs/PERFORMANCE.md measures: one metering point,
// one month, all four registers by day (4 × 32 blocks) and both interval
// fields by quarter-hour (62 blocks).
func benchMonth(b *testing.B, opts ...option) (*world, client.OpenRequest) {
	b.Helper()
	w := newWorld(b, append([]option{func(w *world, c *cryptoserver.Config) {
		c.Log, c.Tokens.Open = slog.New(slog.DiscardHandler), w.open.Opener // unwatched
		c.CheckEvery = 0                                                    // as in production
	}}, opts...)...)
	old, new := w.supplier("871234500000", "Old Energy"), w.supplier("871234500001", "New Energy")
	p := w.electricity(old, new, [16]byte{1})
	may := days("2024-05-01", "2024-06-01")
	var blocks []envelope.PlainBlock
	for d := may.From; d <= may.To; d++ {
		for f := meter.FieldCode(1); f <= 4; f++ {
			blocks = append(blocks, w.registerBlock(f, d))
		}
		if d < may.To {
			blocks = append(blocks, w.intervalBlock(6, d, meter.PT15M), w.intervalBlock(7, d, meter.PT15M))
		}
	}
	p.store(blocks...)
	q := p.ask(new, authz.Request{Purpose: meter.EnergyManagement, Days: may, Fields: []meter.FieldCode{1, 2, 3, 4, 6, 7}})
	if n := len(q.Units[0].Blocks); n != 4*32+62 {
		b.Fatalf("%d blocks", n)
	}
	return w, q
}

func benchCheck(b *testing.B, got []client.Opened, err error) {
	b.Helper()
	if err != nil || got[0].Err != nil || len(got[0].Series) != 6 || len(got[0].Faults) != 0 || len(got[0].Withheld) != 0 {
		b.Fatal(err, got)
	}
}

// BenchmarkOpen is the whole call: client, mTLS, evidence, token, assembly.
func BenchmarkOpen(b *testing.B) {
	w, q := benchMonth(b)
	c := w.as("gateway")
	got, err := c.Open(b.Context(), q)
	benchCheck(b, got, err)
	b.ReportAllocs()
	for b.Loop() {
		got, err := c.Open(context.Background(), q)
		benchCheck(b, got, err)
	}
}

// BenchmarkToken is its floor: the token's part alone, on the same blocks with
// the same keys in its cache.
func BenchmarkToken(b *testing.B) {
	w, q := benchMonth(b)
	u := &q.Units[0]
	var keys []token.WrappedKey
	for _, k := range u.Keys {
		keys = append(keys, token.WrappedKey{ID: k.ID, Epoch: k.Epoch, Wrapped: k.Wrapped})
	}
	var items []token.Item
	for _, row := range u.Blocks {
		ct, err := envelope.ParseCiphertext(row.Ciphertext)
		w.must(err)
		id := envelope.BlockID{EAN: u.Request.EAN, Field: row.Field, Day: row.Day, Resolution: row.Resolution, Version: row.Version, KeyID: ct.KeyID}
		items = append(items, token.Item{Key: row.Key, IV: ct.IV, AAD: id.AppendAAD(nil), In: ct.Body, Out: make([]byte, 0, len(ct.Body))})
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := w.open.Opener.Open(context.Background(), keys, items); err != nil {
			b.Fatal(err)
		}
	}
	for _, it := range items {
		if it.Err != nil {
			b.Fatal(it.Err)
		}
	}
}

// BenchmarkTLS is the other floor: an empty call over the same connection.
func BenchmarkTLS(b *testing.B) {
	w, _ := benchMonth(b)
	c := w.as("gateway")
	b.ReportAllocs()
	for b.Loop() {
		if st := c.Status(context.Background()); st[0].Err != nil {
			b.Fatal(st[0].Err)
		}
	}
}

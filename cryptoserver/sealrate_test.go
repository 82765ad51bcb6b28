package cryptoserver_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// useUp takes n blocks of what an identity may have sealed, without a block
// being sealed: the data key is nobody's.
func useUp(ctx context.Context, api cryptopb.CryptoserverClient, ean meter.EAN, n int) error {
	r := &cryptopb.SealRequest{
		Ean: uint64(ean.Int64()),
		Keys: []*cryptopb.DataKey{{
			Id: make([]byte, 16), Ean: uint64(ean.Int64()), Class: 1, Month: 600, KekEpoch: 1, Wrapped: make([]byte, 40), Mac: make([]byte, 32),
		}},
	}
	for i := range n {
		r.Blocks = append(r.Blocks, &cryptopb.PlainBlock{Field: 1, Day: int32(i)})
	}
	_, err := api.Seal(ctx, r)
	if reasonOf(err) == cryptopb.ReasonKeyRecordInvalid {
		return nil
	}
	return err
}

// TestSealRate: a client that seals too fast is told when to go on, and is not
// in another's way.
func TestSealRate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *cryptoserver.Config) {
		c.SealRate = 200
		c.Allow["Seal"] = []string{"ingest", "other"}
	})
	p := w.point(meter.Electricity)
	ingest, other := w.raw(w.clientTLS("ingest")), w.raw(w.clientTLS("other"))
	for range 2 { // two of the largest calls at once are as much as it may
		w.must(useUp(t.Context(), ingest, p.ean, 20000))
	}
	var trailer metadata.MD
	r := &cryptopb.SealRequest{Ean: uint64(p.ean.Int64()), Keys: []*cryptopb.DataKey{{}}}
	for i := range 20000 {
		r.Blocks = append(r.Blocks, &cryptopb.PlainBlock{Field: 1, Day: int32(i)})
	}
	_, err := ingest.Seal(t.Context(), r, grpc.Trailer(&trailer))
	if reasonOf(err) != cryptopb.ReasonSealRate || status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("a third: %v", err)
	}
	later := time.Duration(0)
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			later = info.GetRetryDelay().AsDuration()
		}
	}
	if later <= 0 || later > time.Second {
		t.Errorf("it is told to wait %s", later)
	}
	if ms := trailer.Get("grpc-retry-pushback-ms"); len(ms) != 1 || ms[0] != strconv.FormatInt(later.Milliseconds(), 10) {
		t.Errorf("gRPC is told to wait %v ms", ms)
	}

	// The other goes on at once.
	start := time.Now()
	w.must(useUp(t.Context(), other, p.ean, 20000))
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("another client waited %s", took)
	}

	// The typed client waits and goes on: an import becomes slower, no more.
	d := day("2024-04-10")
	recs, err := w.as("ingest").Mint(t.Context(), []envelope.KeySpec{{EAN: p.ean, Class: meter.Registers, Month: d.Month()}})
	w.must(err)
	w.must(useUpAll(t.Context(), ingest, p.ean))
	start = time.Now()
	var blocks []envelope.PlainBlock
	for i := range meter.Day(20) {
		blocks = append(blocks, w.registerBlock(importLow, d-9+i), w.registerBlock(importNormal, d-9+i))
	}
	for range 3 {
		if _, err := w.as("ingest").Seal(t.Context(), p.ean, recs, blocks); err != nil {
			t.Fatalf("the typed client: %v", err)
		}
	}
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("120 blocks at 200 a second took %s", took)
	}

	// Its patience ends with the caller's.
	w.must(useUpAll(t.Context(), ingest, p.ean))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	many := make([]envelope.PlainBlock, 19000)
	for i := range many {
		many[i] = envelope.PlainBlock{Field: 1, Version: 1, Block: meter.Block{Day: meter.Day(i)}}
	}
	if _, err := w.as("ingest").Seal(ctx, p.ean, recs, many); !errors.Is(err, client.ErrSealRate) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with no time to wait: %v", err)
	}
}

// useUpAll leaves an identity nothing for a moment.
func useUpAll(ctx context.Context, api cryptopb.CryptoserverClient, ean meter.EAN) error {
	for n := 800; n >= 50; n /= 2 { // what is little is waited for
		for {
			err := useUp(ctx, api, ean, n)
			if reasonOf(err) == cryptopb.ReasonSealRate {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

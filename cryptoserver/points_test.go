package cryptoserver

import (
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kluis/cryptoserver/cryptopb"
)

func tokenID(n int) (id [32]byte) {
	binary.BigEndian.PutUint64(id[:], uint64(n))
	return id
}

// eans is n metering points from a number on.
func eans(from, n int) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = 871680000000000000 + int64(from+i)
	}
	return out
}

// admitted says that the call was counted, or checks that it was refused for
// the reason.
func admitted(t *testing.T, err error, reason cryptopb.Reason) bool {
	t.Helper()
	if err == nil {
		return true
	}
	var r *refusal
	if !errors.As(err, &r) || r.reason != reason {
		t.Errorf("refused with %v, want %s", err, reason)
	}
	return false
}

func TestPointsOfAToken(t *testing.T) {
	t.Parallel()
	now := time.Unix(1718445600, 0)
	expires := now.Add(5 * time.Minute)
	p := newPoints(10)
	for _, c := range []struct {
		name  string
		token int
		eans  []int64
		at    time.Duration
		ok    bool
	}{
		{"nothing opened", 1, nil, 0, true},
		{"some", 1, eans(0, 6), 0, true},
		{"the same again", 1, eans(0, 6), time.Second, true},
		{"the same, often in one call", 1, slices.Concat(eans(0, 6), eans(0, 6), eans(0, 6)), time.Second, true},
		{"more than are left", 1, eans(3, 8), time.Second, false},
		{"none of that was counted", 1, eans(20, 4), time.Second, true},
		{"one too many", 1, eans(30, 1), time.Second, false},
		{"those that were", 1, eans(20, 4), time.Second, true},
		{"another token", 2, eans(30, 10), time.Second, true},
		{"a call of more than a token is good for", 3, eans(0, 11), time.Second, false},
		{"just before it expires", 1, eans(30, 1), 5*time.Minute - 1, false},
		{"of an expired token nothing is left", 1, eans(30, 10), 5*time.Minute + sweepEvery, true},
	} {
		if got := admitted(t, p.admit(tokenID(c.token), expires, c.eans, now.Add(c.at)), cryptopb.ReasonTokenSpent); got != c.ok {
			t.Errorf("%s: admitted %v", c.name, got)
		}
	}
}

// TestPointsOfTwoTokensOfOneID: an issuer that repeats an id gives no more by it.
func TestPointsOfTwoTokensOfOneID(t *testing.T) {
	t.Parallel()
	now := time.Unix(1718445600, 0)
	p := newPoints(10)
	if !admitted(t, p.admit(tokenID(1), now.Add(time.Minute), eans(0, 5), now), "") ||
		!admitted(t, p.admit(tokenID(1), now.Add(5*time.Minute), eans(5, 5), now), "") {
		t.Fatal("the first ten")
	}
	if admitted(t, p.admit(tokenID(1), now.Add(5*time.Minute), eans(10, 1), now.Add(2*time.Minute)), cryptopb.ReasonTokenSpent) {
		t.Error("forgotten with the one that expired first")
	}
}

// TestPointsCountedAtOnce: calls side by side get no more than one after the
// other, and no less.
func TestPointsCountedAtOnce(t *testing.T) {
	t.Parallel()
	const limit, callers, each = 1000, 16, 200
	now := time.Unix(1718445600, 0)
	p := newPoints(limit)
	var opened sync.Map
	var refused atomic.Int64
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				// Each metering point is asked for by two callers.
				ean := eans((c/2)*each+i, 1)
				err := p.admit(tokenID(1), now.Add(time.Minute), slices.Clone(ean), now)
				if admitted(t, err, cryptopb.ReasonTokenSpent) {
					opened.Store(ean[0], true)
				} else {
					refused.Add(1)
				}
			}
		})
	}
	wg.Wait()
	n := 0
	opened.Range(func(any, any) bool { n++; return true })
	if n != limit || refused.Load() == 0 {
		t.Errorf("%d metering points of %d, %d refusals", n, callers/2*each, refused.Load())
	}
}

// TestPointsRoom: however many tokens there are, no more is remembered than
// there is room for, and nobody's count starts again because of others.
func TestPointsRoom(t *testing.T) {
	t.Parallel()
	now := time.Unix(1718445600, 0)
	expires := now.Add(5 * time.Minute)
	p := newPoints(10)
	p.room = 1000
	if !admitted(t, p.admit(tokenID(0), expires, eans(0, 10), now), "") {
		t.Fatal("the first token")
	}
	full := 0
	for i := range 1000 {
		if !admitted(t, p.admit(tokenID(1+i), expires, eans(i, 1), now), cryptopb.ReasonPointsFull) {
			full++
		}
	}
	if want := 1000 - (1000-10-tokenPlaces)/(1+tokenPlaces); full != want || p.filled() > 1 || p.filled() < 0.98 || len(p.tokens) != 1000-full+1 {
		t.Errorf("%d of 1000 tokens had no room, want %d; filled %v with %d tokens", full, want, p.filled(), len(p.tokens))
	}
	if admitted(t, p.admit(tokenID(0), expires, eans(10, 1), now), cryptopb.ReasonTokenSpent) {
		t.Error("the first token was forgotten")
	}
	if !admitted(t, p.admit(tokenID(0), expires, eans(0, 10), now), "") {
		t.Error("what was opened before is opened no more")
	}
	// Room comes back with time.
	if !admitted(t, p.admit(tokenID(5000), expires.Add(time.Minute), eans(0, 10), expires), "") || len(p.tokens) != 1 || p.used != 10+tokenPlaces {
		t.Errorf("after all have expired: %d tokens, %d places", len(p.tokens), p.used)
	}
	// A clock that is set back does not stop the sweeping.
	if !admitted(t, p.admit(tokenID(5001), now.Add(time.Minute), eans(0, 1), now), "") {
		t.Error("a clock set back")
	}
	if !admitted(t, p.admit(tokenID(5002), expires, eans(0, 1), now.Add(time.Minute)), "") || p.tokens[tokenID(5001)] != nil {
		t.Error("after a clock was set back nothing expires")
	}
}

// BenchmarkPointsMemory fills the room, with tokens that are used up and with
// tokens of one metering point each, and says what that takes.
func BenchmarkPointsMemory(b *testing.B) {
	for name, each := range map[string]int{"used-up": defaultPointsPerToken, "single": 1} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				now := time.Unix(1718445600, 0)
				before := heap()
				p := newPoints(0)
				n := 0
				for p.admit(tokenID(n), now.Add(time.Minute), eans(0, each), now) == nil {
					n++
				}
				b.ReportMetric(float64(heap()-before)/1e6, "MB")
				b.ReportMetric(float64(heap()-before)/float64(p.used), "B/place")
				b.ReportMetric(float64(n), "tokens")
			}
		})
	}
}

// BenchmarkPoints is what a call of one metering point costs.
func BenchmarkPoints(b *testing.B) {
	now := time.Unix(1718445600, 0)
	p := newPoints(0)
	i := 0
	for b.Loop() {
		i++
		if err := p.admit(tokenID(i/90_000), now.Add(time.Minute), eans(i, 1), now); err != nil {
			p = newPoints(0)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

package cryptoserver

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"kluis/cryptoserver/cryptopb"
)

// AES-GCM with random IVs of 96 bits is safe for 2^32 blocks under one key
// (NIST SP 800-38D, 8.3): beyond it two of them may have the same IV, which
// gives away both, and the key's authentication. A data key covers one month of
// one metering point, at most 2,000 blocks and their corrections, so honest use
// never comes near. A client that was captured could: at the 20,000 blocks a
// second that an HSM may well do it would take two and a half days without
// stop. Two bounds keep it away: a field of a metering point on one day is
// sealed, and resealed, only so often in a day (repeats), which is at most some
// 130,000 blocks of one data key, 90 years for 2^32; and no client has more than so many
// blocks sealed in a second, over all keys, which is also what keeps the one
// that runs wild from taking the HSM away from the others.
const (
	defaultSealRate = 20000
	// sealBurst lets two of the largest calls through at once.
	sealBurst = 2 * maxBlocks
	// sealWait is how long a call waits here for its turn. It must be short: the
	// call holds memory, and the client can wait at no cost.
	sealWait = 100 * time.Millisecond
	// sealLater bounds for how long a client is told to wait. Whoever asks again
	// sooner than there is room is told once more.
	sealLater = time.Second
)

// sealRates has a limiter for every identity that may seal, and so a fixed size.
type sealRates map[string]*sealLimiter

type sealLimiter struct {
	mu sync.Mutex
	*rate.Limiter
}

// reserve takes n blocks, unless they would have to wait for longer than most.
// Both under the lock: what a limiter gives back it reduces by what others took
// in between, so refusals at the same time would use the rate up.
func (l *sealLimiter) reserve(n int, most time.Duration) (delay time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	reservation := l.ReserveN(now, n)
	delay = reservation.DelayFrom(now)
	if delay > most {
		reservation.CancelAt(now)
		return delay, false
	}
	return delay, true
}

func newSealRates(perSecond int, allow map[string][]string) sealRates {
	if perSecond == 0 {
		perSecond = defaultSealRate
	}
	r := sealRates{}
	for _, method := range []string{"Seal", "Reseal", "SealIdentity"} {
		for _, identity := range allow[method] {
			if r[identity] != nil {
				continue // one bound for all that it has sealed
			}
			r[identity] = &sealLimiter{Limiter: rate.NewLimiter(rate.Limit(perSecond), sealBurst)}
		}
	}
	return r
}

// wait takes n blocks from what an identity may have sealed, or says when there
// is room for them. Time is the process's own: what is bounded is what the
// token does.
func (r sealRates) wait(ctx context.Context, identity string, n int) error {
	limiter := r[identity]
	if limiter == nil { // not on the allow-list, so it does not get here
		return refuse(codes.PermissionDenied, cryptopb.ReasonIdentityNotAllowed, "this client identity may not seal", nil)
	}
	most := sealWait
	if deadline, ok := ctx.Deadline(); ok {
		most = min(most, max(time.Until(deadline), 0))
	}
	delay, ok := limiter.reserve(n, most)
	if !ok {
		return &refusal{
			code: codes.ResourceExhausted, reason: cryptopb.ReasonSealRate, later: min(delay, sealLater),
			text: "this client has more blocks sealed than it may in a second: later",
		}
	}
	if delay == 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

package authz

import (
	"errors"
	"fmt"
	"time"
)

// maxSkew is how far two clocks that agree may be apart.
const maxSkew = time.Minute

var (
	// ErrClockBehind: the version before was sealed more than a minute after what
	// the clock says now. A server whose clock is right can take the step.
	ErrClockBehind = errors.New("the clock is behind the time of the last version")
	// ErrClockAhead: a version was sealed more than a minute after what the clock
	// says now.
	ErrClockAhead = errors.New("sealed in the future")
)

// sealingTime is when the version after one that was sealed at last is sealed.
// Two servers' clocks are never quite the same: of a version sealed by one a
// little ahead the next is sealed right after, not refused.
func sealingTime(at, last time.Time) (time.Time, error) {
	switch behind := last.Sub(at); {
	case behind <= 0:
		return at, nil
	case behind <= maxSkew:
		return last.Add(time.Microsecond), nil
	}
	return at, fmt.Errorf("%w; check the clocks and try again", ErrClockBehind)
}

// CheckSealedAt refuses what was sealed more than a minute after now, the
// caller's own clock: ErrClockAhead. Whoever stores a version asks it before:
// after a version sealed in a year nothing can be sealed for a year.
func CheckSealedAt(sealedAt, now time.Time) error {
	ahead := sealedAt.Sub(now)
	if ahead <= maxSkew {
		return nil
	}
	return fmt.Errorf("%w: %s after what the clock says here (%s); set the clock of the cryptoserver that sealed it, or this machine's, whichever is wrong",
		ErrClockAhead, ahead.Round(time.Second), now.UTC().Format(time.RFC3339))
}

package custodian

import "errors"

var (
	// ErrConflict: somebody else was first.
	ErrConflict = errors.New("changed meanwhile")
	// ErrGone: the data key is not there any more.
	ErrGone = errors.New("the data key is not there any more")
	// ErrUnavailable: the database or the cryptoservers do not serve now. It may
	// be tried again.
	ErrUnavailable = errors.New("not available now")
	// ErrFork: a cryptoserver knows the feed to be longer, or another.
	ErrFork = errors.New("a cryptoserver knows another control feed")
	// ErrDamaged: this record or block does not open.
	ErrDamaged = errors.New("damaged")
	// ErrTooOften: a block of it was sealed as often as may be within a day.
	ErrTooOften = errors.New("sealed too often within a day")
	// ErrErased: this record's key was erased.
	ErrErased = errors.New("data key erased")

	// ErrRolledBack: the database holds less of the feed than this custodian's
	// copy, or than a cryptoserver knows, or another one.
	ErrRolledBack = errors.New("the database is older than the control feed")
	// ErrFeed: what the database holds as the feed does not verify.
	ErrFeed = errors.New("the control feed in the database does not verify")
	// ErrCopy is wrapped when the copy of the feed cannot be used.
	ErrCopy = errors.New("the copy of the control feed is not usable")
	// ErrLacking is wrapped when not every cryptoserver is ready for an epoch.
	ErrLacking = errors.New("not every cryptoserver is ready")
	// ErrRefused: what was asked for is not done, and must not be.
	ErrRefused = errors.New("refused")
)

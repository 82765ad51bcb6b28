// Package control is the feed by which the operator's key custodian tells every
// cryptoserver what has become of keys: which KEK epoch is active, which data
// keys are erased, which epochs are destroyed; and which versions of sealed
// facts count no more, because a later one takes rights away.
//
// The feed is a sequence of entries, 1, 2, ..., chained by SHA-256. A Head says
// "at this time the feed ended with this entry", signed by a seal key. Entries
// carry no signature of their own: a head vouches for all of them up to its
// sequence, so whoever relays a feed can neither change, nor reorder, nor leave
// out any of it. The head that was signed when an entry was appended is kept
// with it; of an erasure the two together are its tombstone.
//
// A head is also a heartbeat: a cryptoserver whose newest head is older than
// MaxAge does not know whether something was erased meanwhile, and opens,
// seals, mints and rewraps nothing.
//
// The package is pure: no clock, no database, no network.
package control

import "time"

const (
	// MaxAge is how old the newest head may be.
	MaxAge = 60 * time.Second
	// MaxSkew is how far in the future a head may lie, for clocks that differ.
	MaxSkew = 10 * time.Second
)

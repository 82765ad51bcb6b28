package cryptoserver

import (
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"kluis/cryptoserver/cryptopb"
)

// A cryptoserver cannot tell whether the owner of a token is at the other end,
// or a gateway that was captured with it. So what can be opened on one token is
// bounded: that many different metering points, until it expires. A supplier
// with more customers than that gets another token in between, for which its
// certificate's key is needed, and the issuer's answer.
const (
	defaultPointsPerToken = 100_000
	// pointRoom bounds what is remembered, over all tokens: a place for each
	// metering point of each token, and tokenPlaces for the token itself. A place
	// takes some 20 to 25 bytes. It is 41 tokens that are used up, in the five minutes
	// that tokens live.
	pointRoom   = 1 << 22
	tokenPlaces = 16
	// sweepEvery is how often what has expired is let go.
	sweepEvery = time.Second
)

// points counts the metering points opened on each token, by its id. What does
// not fit is not opened: if room were made by forgetting, whoever has many tokens
// could start each of them again.
type points struct {
	perToken int
	room     int // places

	mu     sync.Mutex
	tokens map[[32]byte]*tokenPoints
	used   int // places
	swept  time.Time
}

type tokenPoints struct {
	eans    map[int64]struct{}
	expires time.Time
}

func newPoints(perToken int) *points {
	if perToken == 0 {
		perToken = defaultPointsPerToken
	}
	return &points{perToken: perToken, room: pointRoom, tokens: map[[32]byte]*tokenPoints{}}
}

// admit counts the metering points of one call, all or none. It is asked before
// anything is opened: what then does not open is counted all the same. eans is
// used up.
func (p *points) admit(token [32]byte, expires time.Time, eans []int64, now time.Time) error {
	if len(eans) == 0 {
		return nil
	}
	slices.Sort(eans)
	eans = slices.Compact(eans)
	p.mu.Lock()
	defer p.mu.Unlock()
	if since := now.Sub(p.swept); since >= sweepEvery || since < 0 {
		p.sweep(now)
	}
	t, places := p.tokens[token], 0
	known := 0
	if t == nil {
		places = tokenPlaces
	} else {
		known = len(t.eans)
		eans = slices.DeleteFunc(eans, func(ean int64) bool { _, is := t.eans[ean]; return is })
	}
	if known+len(eans) > p.perToken {
		return refuse(codes.Unauthenticated, cryptopb.ReasonTokenSpent,
			"as many metering points as one access token is good for were opened on this one: get a new one", nil)
	}
	if places += len(eans); places > p.room-p.used {
		return refuse(codes.Unavailable, cryptopb.ReasonPointsFull,
			"this server remembers the metering points of as many access tokens as it has room for: ask another server, or when tokens have expired", nil)
	}
	if t == nil {
		t = &tokenPoints{eans: make(map[int64]struct{}, len(eans)), expires: expires}
		p.tokens[token] = t
	}
	p.used += places
	for _, ean := range eans {
		t.eans[ean] = struct{}{}
	}
	// Two tokens of one id count as one, which lives as long as either.
	if t.expires.Before(expires) {
		t.expires = expires
	}
	return nil
}

// sweep lets go what has expired; p.mu is held.
func (p *points) sweep(now time.Time) {
	p.swept = now
	for id, t := range p.tokens {
		if !now.Before(t.expires) {
			delete(p.tokens, id)
			p.used -= len(t.eans) + tokenPlaces
		}
	}
}

// filled is how much of the room is taken, from 0 to 1.
func (p *points) filled() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return float64(p.used) / float64(p.room)
}

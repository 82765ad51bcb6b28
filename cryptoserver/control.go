package cryptoserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"

	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/token"
)

// maxEntries bounds the control entries of one call; their bytes are bounded
// as every message's.
const maxEntries = 100_000

// follower is what this server knows of the control feed, and the erasing that
// follows from it. The feed itself refuses what is erased from the moment it is
// taken in; an erasure is done once, beyond that, no unwrapped key from before
// is left: first the calls that began before have ended, then the tokens have
// forgotten.
type follower struct {
	*control.Feed
	holders []token.Forgetter

	mu      sync.Mutex
	calls   *sync.WaitGroup // those that began since the last erasure
	drained chan struct{}   // closed when all from before it have ended; nil: there was none
	undone  bool            // an erasure was taken in, and not all handles are gone

	settling sync.Mutex // one at a time; never held by a call that uses keys
}

// use notes a call that uses data keys, before it looks at what is erased;
// the call says when it has ended.
func (f *follower) use() (ended func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls == nil {
		f.calls = new(sync.WaitGroup)
	}
	f.calls.Add(1)
	return f.calls.Done
}

// advance takes the feed in and notes whether there is something to erase.
func (f *follower) advance(head control.Head, first uint64, entries [][]byte) error {
	// Under the lock, so that what erases is noted before anybody can be told
	// that it is known.
	f.mu.Lock()
	defer f.mu.Unlock()
	erases, err := f.Advance(head, first, entries)
	if err != nil || !erases {
		return err
	}
	f.undone = true
	calls, before, drained := f.calls, f.drained, make(chan struct{})
	f.calls, f.drained = nil, drained
	go func() {
		if before != nil {
			<-before
		}
		if calls != nil {
			calls.Wait()
		}
		close(drained)
	}()
	return nil
}

// settle ends the erasures taken in so far; an error says that it did not, and
// may be tried again.
func (f *follower) settle(ctx context.Context) error {
	f.settling.Lock()
	defer f.settling.Unlock()
	f.mu.Lock()
	undone, drained := f.undone, f.drained
	f.mu.Unlock()
	if !undone {
		return nil
	}
	select {
	case <-drained:
	case <-ctx.Done():
		return fmt.Errorf("calls from before it have not ended: %w", ctx.Err())
	}
	errs := make([]error, len(f.holders))
	var wg sync.WaitGroup
	for i, h := range f.holders {
		wg.Go(func() { errs[i] = h.Forget(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.undone = f.drained != drained // one more was taken in meanwhile
	return nil
}

// current refuses a call that needs to know what was erased, while this server
// may not.
func (s *Server) current() error {
	if s.control.Fresh(s.now()) {
		return nil
	}
	return refuse(codes.Unavailable, cryptopb.ReasonControlStale,
		fmt.Sprintf("this server has no head of the control feed from the last %d seconds, so it does not know what was erased: "+
			"see that the custodian's daemon (kluis keys feed) runs and reaches it", int(control.MaxAge.Seconds())), nil)
}

// activeEpoch is the epoch that keys are wrapped under.
func (s *Server) activeEpoch() (uint32, error) {
	epoch := s.control.Active()
	if epoch == 0 || s.control.Destroyed(epoch) {
		return 0, refuse(codes.FailedPrecondition, cryptopb.ReasonNoEpoch,
			"no KEK epoch was activated yet: run kluis keys rotate-kek", nil)
	}
	return epoch, nil
}

// PutControl takes in the control feed as a relay has it. What it says is
// believed as far as a pinned seal key vouches for it.
func (s *Server) PutControl(ctx context.Context, req *cryptopb.PutControlRequest) (*cryptopb.PutControlResponse, error) {
	callOf(ctx).units = len(req.Entries)
	if len(req.Entries) > maxEntries {
		return nil, malformed("at most %d entries in a call", maxEntries)
	}
	head, err := control.OpenHead(req.Head, s.sealKeys)
	if err != nil {
		return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonEvidenceInvalid, "the head of the control feed does not verify under the pinned seal keys", err)
	}
	if ahead := head.At.Sub(s.now()); ahead > control.MaxSkew {
		// Once taken in, it would hide every true head until its time has come.
		s.log.Error("a head of the control feed is from the future: compare the servers' clocks", "ahead", ahead.String())
		return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonEvidenceInvalid, "the head of the control feed is from the future: compare the servers' clocks", nil)
	}
	if s.overtaken(head) {
		return s.settled(ctx)
	}
	switch err := s.control.advance(head, req.First, req.Entries); {
	case err == nil, errors.Is(err, control.ErrGap):
	case errors.Is(err, control.ErrBehind) && s.overtaken(head): // since it was asked above
	case errors.Is(err, control.ErrFork):
		return nil, s.forked(err)
	default:
		s.log.Error("a control entry cannot be read: install the version that wrote it", "error", err.Error())
		return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonMalformed, "a control entry cannot be read: this server stays before it", err)
	}
	s.health.lookAtFeed()
	return s.settled(ctx)
}

// overtaken says whether a head is one that a longer feed overtook on its way,
// rather than the end of a feed that was made shorter.
func (s *Server) overtaken(head control.Head) bool {
	known := s.control.Head()
	return head.Sequence < known.Sequence && head.At.Sub(known.At) <= control.MaxSkew
}

// settled answers once what the feed erases is erased.
func (s *Server) settled(ctx context.Context) (*cryptopb.PutControlResponse, error) {
	// Read first: an entry taken in after this is not answered for.
	sequence := s.control.Head().Sequence
	if err := s.control.settle(ctx); err != nil {
		return nil, refuse(codes.Unavailable, cryptopb.ReasonTokenUnavailable,
			"unwrapped keys from before an erasure may be left on an HSM token: nothing erased is opened, and the erasure is not done until this call succeeds", err)
	}
	return &cryptopb.PutControlResponse{Sequence: sequence}, nil
}

func (s *Server) forked(err error) error {
	s.log.Error("the control feed contradicts the one known: somebody rewrote it, or put back an older database", "error", err.Error())
	return refuse(codes.FailedPrecondition, cryptopb.ReasonControlFork, err.Error(), nil)
}

// SignControl signs a head of the control feed, with this server's time: what
// the custodian says the feed is, unless this server knows better.
func (s *Server) SignControl(ctx context.Context, req *cryptopb.SignControlRequest) (*cryptopb.SignControlResponse, error) {
	if s.tokens.Seal == nil {
		return nil, notServed(RoleSeal)
	}
	if err := s.recordable(); err != nil {
		return nil, err
	}
	c := callOf(ctx)
	c.units = 1
	head := control.Head{Sequence: req.Sequence}
	if len(req.Hash) != len(head.Hash) || copy(head.Hash[:], req.Hash) == 0 || (head.Sequence == 0) != (head.Hash == control.Hash{}) || head.Sequence == 1<<64-1 {
		return nil, malformed("a sequence and the hash of 32 bytes that goes with it")
	}
	known := s.control.Head()
	now := s.now()
	if head.Sequence < known.Sequence || head.Sequence == known.Sequence && head.Hash != known.Hash {
		err := fmt.Errorf("%w: asked to sign entry %d, and %d is known", control.ErrFork, head.Sequence, known.Sequence)
		if head.Sequence < known.Sequence && now.Sub(known.At) <= control.MaxSkew {
			// Two who append at the same time are no reason for alarm.
			return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonControlFork, err.Error(), nil)
		}
		return nil, s.forked(err)
	}
	if len(req.Entry) > 0 {
		entry, err := control.ParseEntry(req.Entry)
		if err != nil {
			return nil, malformed("%v", err)
		}
		if entry.Kind == control.ActivateEpoch && !slices.Contains(s.tokens.Seal.Epochs(), entry.Epoch) {
			// It could not be taken back, and nothing could be minted or sealed.
			return nil, stepRefused(fmt.Errorf("this server's seal token has no KEK of epoch %d: bring it to every token and restart the servers first", entry.Epoch))
		}
		if head.Sequence == known.Sequence {
			if err := s.control.Check(entry); err != nil {
				return nil, stepRefused(err)
			}
		}
		head.Sequence, head.Hash = head.Sequence+1, head.Hash.Next(req.Entry)
	}
	head.At = now
	signed, err := head.Sign(s.sealer)
	if err != nil {
		return nil, s.tokenError(ctx, RoleSeal, err)
	}
	if _, err := control.OpenHead(signed, s.sealKeys); err != nil {
		return nil, refuse(codes.Internal, cryptopb.ReasonInternal, "the token's signature does not verify", err)
	}
	if err := s.recorder.signedHead(head, c.identity); err != nil {
		return nil, err
	}
	return &cryptopb.SignControlResponse{Head: signed}, nil
}

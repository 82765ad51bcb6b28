package cryptoserver

import (
	"context"
	"slices"
	"sync"
	"time"

	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/token"
)

// Status says who this server is and how it fares. It asks no token anything
// that would wait for the token.
func (s *Server) Status(context.Context, *cryptopb.StatusRequest) (*cryptopb.StatusResponse, error) {
	head := s.control.Head()
	resp := &cryptopb.StatusResponse{
		ServerId:        s.id,
		BootId:          s.boot[:],
		Roles:           s.roleNames(),
		ProfileDigest:   s.digest[:],
		Healthy:         s.health.healthy(),
		Version:         s.version,
		StartedAt:       s.started.UnixMicro(),
		Receipts:        s.recorder.receipts.Load(),
		ControlSequence: head.Sequence,
		ActiveEpoch:     s.control.Active(),
	}
	if !head.At.IsZero() {
		resp.ControlAt = head.At.UnixMicro()
	}
	for _, d := range s.health.describe() {
		resp.KekEpochs = append(resp.KekEpochs, d.epochs...)
		resp.Tokens = append(resp.Tokens, d.tokens...)
	}
	slices.Sort(resp.KekEpochs)
	resp.KekEpochs = slices.Compact(resp.KekEpochs)
	return resp, nil
}

// description is what the tokens of one role say of themselves.
type description struct {
	epochs []uint32
	tokens []*cryptopb.TokenStatus
}

// describePatience is how long a token may take to say what it knows already.
const describePatience = time.Second

// describe asks the tokens of every role for what they found when they were
// opened. That waits for nothing; should it, in a module that hangs, the role
// is said to be unknown.
func (m *monitor) describe() []description {
	ctx, cancel := context.WithTimeout(context.Background(), describePatience)
	defer cancel()
	out := make([]description, len(allRoles))
	var wg sync.WaitGroup
	for i, r := range allRoles {
		if t := m.tokens[r]; t != nil {
			wg.Go(func() { out[i] = m.describeRole(ctx, r, t) })
		}
	}
	wg.Wait()
	return out
}

func (m *monitor) describeRole(ctx context.Context, r Role, t token.Health) description {
	unknown := description{tokens: []*cryptopb.TokenStatus{{Role: string(r), State: "unknown"}}}
	select {
	case m.asking[r] <- struct{}{}: // one at a time, so that at most one hangs
	case <-ctx.Done():
		return unknown
	}
	answer := make(chan description, 1)
	go func() {
		answer <- description{epochs: t.Epochs(), tokens: reportsToWire(r, t.Report())}
		<-m.asking[r]
	}()
	select {
	case d := <-answer:
		return d
	case <-ctx.Done():
		return unknown
	}
}

func reportsToWire(r Role, in []token.Report) []*cryptopb.TokenStatus {
	out := make([]*cryptopb.TokenStatus, len(in))
	for i, t := range in {
		o := &cryptopb.TokenStatus{Role: string(r), Label: t.Label, State: t.State, Handles: uint64(max(0, t.Handles))}
		for _, k := range t.Keys {
			w := &cryptopb.KeyStatus{Label: k.Label, Kind: k.Kind, KekEpoch: k.Epoch, Attributes: k.Attributes, Uses: k.Uses}
			if !k.MadeOn.IsZero() {
				w.MadeOn = k.MadeOn.UTC().Format(time.DateOnly)
			}
			o.Keys = append(o.Keys, w)
		}
		out[i] = o
	}
	return out
}

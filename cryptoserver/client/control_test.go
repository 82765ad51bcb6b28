package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
)

func refused(code codes.Code, reason cryptopb.Reason, later time.Duration) error {
	st, err := status.New(code, "why").WithDetails(
		&errdetails.ErrorInfo{Reason: string(reason), Domain: cryptopb.ReasonDomain}, &errdetails.RetryInfo{RetryDelay: durationpb.New(later)})
	if err != nil {
		panic(err)
	}
	return st.Err()
}

// answering is a server of which only the answers to Reseal and Rewrap are
// known.
type answering struct {
	cryptopb.CryptoserverClient
	asked   int
	answers []error // in turn, the last for ever; nil: answered
	resp    *cryptopb.ResealResponse
	rewrap  *cryptopb.RewrapResponse
}

func (a *answering) Reseal(context.Context, *cryptopb.ResealRequest, ...grpc.CallOption) (*cryptopb.ResealResponse, error) {
	err := a.answers[min(a.asked, len(a.answers)-1)]
	a.asked++
	return a.resp, err
}

func (a *answering) Rewrap(context.Context, *cryptopb.RewrapRequest, ...grpc.CallOption) (*cryptopb.RewrapResponse, error) {
	return a.rewrap, nil
}

// TestResealAsksOn: until a server has both roles and can serve; a refusal is
// the same everywhere.
func TestResealAsksOn(t *testing.T) {
	t.Parallel()
	ok := &cryptopb.ResealResponse{Blocks: []*cryptopb.ResealedBlock{{Ciphertext: []byte("xyz")}}}
	role := refused(codes.FailedPrecondition, cryptopb.ReasonRoleNotServed, 0)
	away := refused(codes.Unavailable, cryptopb.ReasonControlStale, 0)
	slow := refused(codes.ResourceExhausted, cryptopb.ReasonSealRate, 20*time.Millisecond)
	erased := refused(codes.FailedPrecondition, cryptopb.ReasonKeyErased, 0)
	for name, c := range map[string]struct {
		answers [3][]error
		want    error
		asked   int // in all
	}{
		"the one that can":        {[3][]error{{role}, {nil}, {away}}, nil, 0},
		"later":                   {[3][]error{{role}, {slow, slow, nil}, {away}}, nil, 0},
		"none has both roles":     {[3][]error{{role}, {role}, {role}}, ErrRefused, 3},
		"the one that may come":   {[3][]error{{role}, {away}, {role}}, ErrControlStale, 3},
		"a refusal is a refusal":  {[3][]error{{erased}, {erased}, {erased}}, ErrErased, 1},
		"an unknown failure, too": {[3][]error{{errors.New("x")}, {errors.New("x")}, {errors.New("x")}}, ErrInternal, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cl := &Client{timeout: 5 * time.Second}
			var servers []*answering
			for _, a := range c.answers {
				s := &answering{answers: a, resp: ok}
				servers = append(servers, s)
				cl.servers = append(cl.servers, server{api: s})
			}
			out, err := cl.Reseal(t.Context(), envelope.KeyRecord{}, envelope.KeyRecord{}, []envelope.SealedBlock{{Ciphertext: []byte("abc")}})
			if !errors.Is(err, c.want) || c.want == nil && (len(out) != 1 || string(out[0].Ciphertext) != "xyz") {
				t.Errorf("%v, %v", out, err)
			}
			asked := 0
			for _, s := range servers {
				asked += s.asked
			}
			if c.asked != 0 && asked != c.asked {
				t.Errorf("%d servers were asked", asked)
			}
		})
	}
}

// TestAnswersAreChecked: what goes into the database is what was asked for.
func TestAnswersAreChecked(t *testing.T) {
	t.Parallel()
	good := func() *cryptopb.RewrappedKey {
		return &cryptopb.RewrappedKey{Wrapped: make([]byte, 40), Mac: make([]byte, 32)}
	}
	for name, c := range map[string]struct {
		resp *cryptopb.RewrapResponse
		want error // of the call
		key  error // of the key
	}{
		"well":          {&cryptopb.RewrapResponse{KekEpoch: 2, Keys: []*cryptopb.RewrappedKey{good()}}, nil, nil},
		"erased":        {&cryptopb.RewrapResponse{KekEpoch: 2, Keys: []*cryptopb.RewrappedKey{{Fault: cryptopb.Fault_FAULT_ERASED}}}, nil, ErrErased},
		"damaged":       {&cryptopb.RewrapResponse{KekEpoch: 2, Keys: []*cryptopb.RewrappedKey{{Fault: cryptopb.Fault_FAULT_DAMAGED}}}, nil, ErrDamaged},
		"a new fault":   {&cryptopb.RewrapResponse{KekEpoch: 2, Keys: []*cryptopb.RewrappedKey{{Fault: 99, Wrapped: make([]byte, 40), Mac: make([]byte, 32)}}}, nil, ErrDamaged},
		"no epoch":      {&cryptopb.RewrapResponse{Keys: []*cryptopb.RewrappedKey{good()}}, ErrInternal, nil},
		"too few":       {&cryptopb.RewrapResponse{KekEpoch: 2}, ErrInternal, nil},
		"nothing":       {&cryptopb.RewrapResponse{KekEpoch: 2, Keys: []*cryptopb.RewrappedKey{nil}}, ErrInternal, nil},
		"a short key":   {&cryptopb.RewrapResponse{KekEpoch: 2, Keys: []*cryptopb.RewrappedKey{{Wrapped: make([]byte, 39), Mac: make([]byte, 32)}}}, ErrInternal, nil},
		"without a MAC": {&cryptopb.RewrapResponse{KekEpoch: 2, Keys: []*cryptopb.RewrappedKey{{Wrapped: make([]byte, 40)}}}, ErrInternal, nil},
	} {
		cl := &Client{timeout: time.Second, rotate: &answering{rewrap: c.resp}}
		epoch, out, err := cl.Rewrap(t.Context(), []envelope.KeyRecord{{Epoch: 1, ID: [16]byte{7}}})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if c.want == nil && (epoch != 2 || len(out) != 1 || !errors.Is(out[0].Err, c.key) || c.key == nil && (out[0].Record.Epoch != 2 || out[0].Record.ID != [16]byte{7})) {
			t.Errorf("%s: %d, %+v", name, epoch, out)
		}
	}
	for name, b := range map[string]*cryptopb.ResealedBlock{
		"nothing": nil, "of another length": {Ciphertext: []byte("ab")},
	} {
		cl := &Client{timeout: time.Second, servers: []server{{api: &answering{answers: []error{nil}, resp: &cryptopb.ResealResponse{Blocks: []*cryptopb.ResealedBlock{b}}}}}}
		if _, err := cl.Reseal(t.Context(), envelope.KeyRecord{}, envelope.KeyRecord{}, []envelope.SealedBlock{{Ciphertext: []byte("abc")}}); !errors.Is(err, ErrInternal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLimitedWaits: as long as it is told, and not longer than its caller.
func TestLimitedWaits(t *testing.T) {
	t.Parallel()
	slow := fromGRPC(refused(codes.ResourceExhausted, cryptopb.ReasonSealRate, 50*time.Millisecond))
	n := 0
	start := time.Now()
	if err := whileLimited(t.Context(), func() error {
		if n++; n < 3 {
			return slow
		}
		return nil
	}); err != nil || n != 3 || time.Since(start) < 100*time.Millisecond {
		t.Errorf("%d calls in %s: %v", n, time.Since(start), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := whileLimited(ctx, func() error { return slow }); !errors.Is(err, ErrSealRate) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("its caller's time is over: %v", err)
	}
	n = 0
	if err := whileLimited(t.Context(), func() error {
		n++
		return fromGRPC(refused(codes.ResourceExhausted, cryptopb.ReasonSealRate, time.Hour))
	}); !errors.Is(err, ErrSealRate) || n != 1 {
		t.Errorf("an hour: %d calls, %v", n, err)
	}
}

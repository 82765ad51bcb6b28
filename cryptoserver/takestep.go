package cryptoserver

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
	"kluis/internal/authn"
)

// TakeStep seals a step of a consent for whoever the access token names, if that
// one may take that very step now: a supplier about itself, an employee what the
// token's errand says (authz.Permit). The gateway that hands it on has no say in
// it. Who took the step is in the legal file.
//
// Nothing is stored here: a version that was sealed and did not arrive is the
// caller's to ask for again, and counts for nothing.
func (s *Server) TakeStep(ctx context.Context, req *cryptopb.TakeStepRequest) (*cryptopb.SealStepResponse, error) {
	if s.tokens.Seal == nil {
		return nil, notServed(RoleSeal)
	}
	callOf(ctx).units = 1
	now := s.now()
	caller, err := s.caller(ctx, req.AccessToken, req.SupplierRecord, authn.ScopeConsents, now)
	if err != nil {
		return nil, err
	}
	if err := s.sameProfile(req.ProfileDigest); err != nil {
		return nil, err
	}
	if err := s.current(); err != nil {
		return nil, err
	}
	if err := s.recordable(); err != nil {
		return nil, err
	}
	step, err := authz.DecodeStep(req.Step)
	if err != nil {
		return nil, malformed("not a step of a legal file")
	}
	previous, err := s.sealKeys.LegalFile(req.Previous)
	if err != nil {
		return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonEvidenceInvalid, "the previous legal file does not verify under the pinned seal keys", err)
	}
	// A step by token never starts from a version that counts no more, not even
	// one that takes rights away: who puts a database right is the registrar.
	if s.files.behind(previous.EAN(), sealedAt(previous), now) || s.supersededFile(previous) {
		return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonEvidenceInvalid,
			"there is a later version of the legal file than the previous one given: fetch it, and take the step on it", nil)
	}
	actor, err := authz.Permit(caller, step, previous, s.profile, now)
	if err != nil {
		return nil, notPermitted(err)
	}
	next, err := authz.Apply(previous, step, actor, now, s.profile.Location())
	if err != nil {
		return nil, notPermitted(err)
	}
	return s.sealFile(ctx, next)
}

// TakeSupplierStep suspends or resumes a supplier for the employee whom the access
// token names, if the token is for that very step (authz.PermitSuspend). The
// gateway that hands it on has no say in it. Who did is in the record.
//
// Nothing is stored here, as of TakeStep.
func (s *Server) TakeSupplierStep(ctx context.Context, req *cryptopb.TakeSupplierStepRequest) (*cryptopb.SealSupplierResponse, error) {
	if s.tokens.Seal == nil {
		return nil, notServed(RoleSeal)
	}
	callOf(ctx).units = 1
	now := s.now()
	caller, err := s.caller(ctx, req.AccessToken, req.SupplierRecord, authn.ScopeStaff, now)
	if err != nil {
		return nil, err
	}
	if err := s.current(); err != nil {
		return nil, err
	}
	if err := s.recordable(); err != nil {
		return nil, err
	}
	previous, err := s.sealKeys.Supplier(req.Previous)
	if err != nil {
		return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonEvidenceInvalid, "the previous supplier record does not verify under the pinned seal keys", err)
	}
	// As in TakeStep: never on a version that counts no more, whatever it takes away.
	if s.suppliers.behind(previous.GLN(), previous.Version(), now) || s.supersededSupplier(previous) {
		return nil, refuse(codes.FailedPrecondition, cryptopb.ReasonEvidenceInvalid,
			"there is a later version of the supplier record than the previous one given: fetch it, and take the step on it", nil)
	}
	actor, err := authz.PermitSuspend(caller, previous, req.Suspend, caller.IssuedAt())
	if err != nil {
		return nil, notPermitted(err)
	}
	next, err := authz.Suspend(previous, req.Suspend, actor, now)
	if err != nil {
		return nil, stepRefused(err)
	}
	return s.sealRecord(ctx, next)
}

// sameProfile refuses a client that decided by other rules.
func (s *Server) sameProfile(digest []byte) error {
	if string(digest) == string(s.digest[:]) {
		return nil
	}
	return refuse(codes.FailedPrecondition, cryptopb.ReasonProfileMismatch,
		"the client decided with another market profile than this server holds: give both the same file and restart them", nil)
}

// stepReasons are the refusals of authz, the finer ones first. The client turns
// them back.
var stepReasons = []struct {
	err    error
	code   codes.Code
	reason cryptopb.Reason
}{
	{authz.ErrClockBehind, codes.Unavailable, cryptopb.ReasonClockBehind},
	{authz.ErrNoRelation, codes.PermissionDenied, cryptopb.ReasonNoRelation},
	{authz.ErrNotPermitted, codes.PermissionDenied, cryptopb.ReasonNotPermitted},
	{authz.ErrConsentUnknown, codes.FailedPrecondition, cryptopb.ReasonConsentUnknown},
	{authz.ErrConsentAnswered, codes.FailedPrecondition, cryptopb.ReasonConsentAnswered},
	{authz.ErrConsentLapsed, codes.FailedPrecondition, cryptopb.ReasonConsentLapsed},
	{authz.ErrConsentEnded, codes.FailedPrecondition, cryptopb.ReasonConsentEnded},
	{authz.ErrConsentNotPossible, codes.FailedPrecondition, cryptopb.ReasonConsentNotPossible},
	{authz.ErrTooManyConsents, codes.FailedPrecondition, cryptopb.ReasonTooManyConsents},
	{authz.ErrStep, codes.FailedPrecondition, cryptopb.ReasonStepRefused},
}

// notPermitted passes on why a step cannot be taken. authz's text says what to do
// and names nobody; of what the caller has nothing to do with there is none.
func notPermitted(err error) error {
	for _, r := range stepReasons {
		if !errors.Is(err, r.err) {
			continue
		}
		text := r.err.Error()
		if r.reason != cryptopb.ReasonNoRelation {
			text = strings.TrimPrefix(err.Error(), text+": ")
		}
		return refuse(r.code, r.reason, text, nil)
	}
	return refuse(codes.Internal, cryptopb.ReasonInternal, "no decision on the step", err)
}

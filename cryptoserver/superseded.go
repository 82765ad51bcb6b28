package cryptoserver

import (
	"google.golang.org/grpc/codes"

	"kluis/authz"
	"kluis/cryptoserver/cryptopb"
)

// The control feed names, of each metering point and supplier whose rights
// were narrowed, the first version of its sealed fact that counts. What is
// older is refused, also by a server that has seen nothing since it started:
// it opens nothing before it knows the feed.
//
// There is no grace for requests on their way: a right that was taken away is
// gone, and a client that fetches anew is served. What this server itself was
// shown (newest) is the tighter bound while it runs.

// Kinds of sealed facts, as the metric counts them.
const (
	supersededFile   = "legal_file"
	supersededRecord = "supplier_record"
)

func (s *Server) supersededFile(f *authz.LegalFile) bool {
	if s.control.CountsFile(f.EAN(), f.Version(), f.SealedAt()) {
		return false
	}
	s.metrics.units.WithLabelValues("evidence_superseded").Inc()
	s.metrics.superseded.WithLabelValues(supersededFile).Inc()
	return true
}

func (s *Server) supersededSupplier(r *authz.Supplier) bool {
	if r.Version() >= s.control.SupplierMinimum(r.GLN()) {
		return false
	}
	s.metrics.superseded.WithLabelValues(supersededRecord).Inc()
	return true
}

// onSupersededFile refuses a step on top of a version that counts no more,
// which would bring back what a later one took away: with the next number, and
// so as the newest. A first version may be sealed, as it is below every minimum
// there is. A step that itself takes rights away may be taken: after a
// database was put back for good, that is how what was lost is done again.
func (s *Server) onSupersededFile(previous, next *authz.LegalFile) error {
	switch {
	case previous == nil:
		return nil
	case s.control.Head().At.IsZero():
		return notToldYet()
	case s.control.CountsFile(previous.EAN(), previous.Version(), previous.SealedAt()):
		return nil
	case authz.Narrows(previous, next):
		s.log.Warn("a step that takes rights away was taken on a legal file older than the control feed allows: was the database put back?")
		return nil
	}
	s.metrics.superseded.WithLabelValues(supersededFile).Inc()
	return refuse(codes.FailedPrecondition, cryptopb.ReasonEvidenceInvalid,
		"there is a later version of the legal file than the previous one given: fetch it, and take the step on it. If the database has none, it was put back to an older state: "+
			"restore a later one, or take the steps that took rights away again", nil)
}

func (s *Server) onSupersededRecord(previous, next *authz.Supplier) error {
	switch {
	case previous == nil:
		return nil
	case s.control.Head().At.IsZero():
		return notToldYet()
	case previous.Version() >= s.control.SupplierMinimum(next.GLN()):
		return nil
	case authz.NarrowsSupplier(previous, next):
		s.log.Warn("a supplier record older than the control feed allows was narrowed: was the database put back?")
		return nil
	}
	s.metrics.superseded.WithLabelValues(supersededRecord).Inc()
	return refuse(codes.FailedPrecondition, cryptopb.ReasonEvidenceInvalid,
		"there is a later version of the supplier record than the previous one given: fetch it, and change that. If the database has none, it was put back to an older state: "+
			"restore a later one, or withdraw again what was withdrawn", nil)
}

// notToldYet: an old feed will do, as what was recorded while no heartbeat
// comes must be recorded all the same; but none at all will not.
func notToldYet() error {
	return refuse(codes.Unavailable, cryptopb.ReasonControlStale,
		"this server has started and does not know the control feed yet, so it cannot tell whether there is a later version: "+
			"see that the custodian's daemon (kluis keys feed) runs and reaches it", nil)
}

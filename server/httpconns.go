package server

import "errors"

// ConnectionLimits bound the connections of the API.
type ConnectionLimits struct {
	All            int // at once
	PerCertificate int // of these
	Handshakes     int // under way, besides
}

func (l ConnectionLimits) check() error {
	if l.All < 1 || l.PerCertificate < 1 || l.PerCertificate > l.All || l.Handshakes < 1 {
		return errors.New("server: limits: there are connections, a certificate has some of them and not more than all, and handshakes")
	}
	return nil
}

// Why connections were closed, as the metrics name it.
const (
	closedIdle        = "idle"
	closedHandshake   = "handshake"
	closedRefused     = "refused"
	closedCertificate = "certificate"
)

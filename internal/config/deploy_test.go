package config

import "testing"

// TestDeployExamples: what deploy/config shows is what the processes take.
func TestDeployExamples(t *testing.T) {
	t.Parallel()
	const dir = "../../deploy/config/"
	if _, err := Load[Gateway](dir + "gateway.yaml"); err != nil {
		t.Error(err)
	}
	if _, err := Load[IssuerProcess](dir + "issuer.yaml"); err != nil {
		t.Error(err)
	}
	if _, err := Load[Cryptoserver](dir + "cryptoserver.yaml"); err != nil {
		t.Error(err)
	}
	if _, err := Load[Portal](dir + "portal.yaml"); err != nil {
		t.Error(err)
	}
	if _, err := Load[Operator](dir + "kluis.yaml"); err != nil {
		t.Error(err)
	}
}

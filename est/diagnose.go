package est

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"

	"keystead/fault"
	"keystead/pki"
)

// Question is what a device would show, to be told what would come of it.
type Question struct {
	Operation Operation
	Chain     []*x509.Certificate // of the client; nobody proves its key
	CSR       []byte              // PKCS#10, DER
	Token     string              // an enrolment token, or a bearer token
}

// Diagnosis is what a DMS would say to a request, check by check.
type Diagnosis struct {
	Accepted bool          `json:"accepted"`
	Status   int           `json:"status"`              // that EST would answer with
	Reason   string        `json:"reason,omitempty"`    // the first that it would be refused for
	AuthMode AuthMode      `json:"auth_mode,omitempty"` // by what was shown
	Device   string        `json:"device,omitempty"`    // the id of the one it is of; none makes a new one
	Checks   []Examination `json:"checks"`
}

// Examination is one check of a diagnosis.
type Examination struct {
	Check  string `json:"check"`
	Result string `json:"result"` // "passed", "failed" or "skipped"
	Detail string `json:"detail"`
}

// diagnosing is a diagnosis in the making.
type diagnosing struct {
	Diagnosis

	internal error // that nobody is told
}

// note puts in what came of a check, and says whether it passed.
func (x *diagnosing) note(check, passed string, err error) bool {
	if err == nil {
		x.Checks = append(x.Checks, Examination{check, "passed", passed})
		return true
	}
	status, text := statuses[fault.KindOf(err)], fault.Message(err)
	if _, ok := errors.AsType[*HookError](err); ok {
		status, text = http.StatusBadGateway, err.Error()
	} else if status == http.StatusInternalServerError {
		x.internal = err
	}
	x.Checks = append(x.Checks, Examination{check, "failed", text})
	if x.Reason == "" {
		x.Status, x.Reason = status, text
	}
	return false
}

func (x *diagnosing) skip(check, why string) {
	x.Checks = append(x.Checks, Examination{check, "skipped", why})
}

// Diagnose says whether a DMS of the actor's organisation would let a request in, and if not why, by
// the checks of the request itself. Nothing is issued, spent or recorded, and no webhook is asked.
func (s *Service) Diagnose(ctx context.Context, dms string, q Question) (Diagnosis, error) {
	d, err := s.DMS(ctx, dms)
	if err != nil {
		return Diagnosis{}, err
	}
	if len(q.Chain) == 0 && len(q.CSR) == 0 {
		return Diagnosis{}, fault.InvalidFields(fault.Field{Name: "csr", Message: "send a request, a certificate, or both"})
	}
	call := &Call{Label: d.ID, Operation: q.Operation, Chain: q.Chain, trial: true}
	if q.Token != "" {
		call.Scheme, call.Value = "Bearer", q.Token
	}
	x := &diagnosing{}
	csr := x.request(q.CSR)
	if q.Operation == SimpleReenroll {
		s.diagnoseRenewal(ctx, x, &d, call, csr)
	} else {
		s.diagnoseEnrolment(ctx, x, &d, call, csr)
	}
	if x.internal != nil {
		return Diagnosis{}, x.internal
	}
	if x.Accepted = x.Reason == ""; x.Accepted && x.Status == 0 {
		x.Status = http.StatusOK
	}
	return x.Diagnosis, nil
}

// request reads the request, nil if there is none that can be read.
func (x *diagnosing) request(der []byte) *x509.CertificateRequest {
	if len(der) == 0 {
		x.skip("request", "none was given: its key, names and what would be issued were not looked at")
		return nil
	}
	csr, err := pki.ParseCSR(der)
	x.note("request", "it is a PKCS#10 request", err)
	return csr
}

func (s *Service) diagnoseEnrolment(ctx context.Context, x *diagnosing, d *DMS, call *Call, csr *x509.CertificateRequest) {
	enrolment, keygen := &d.Settings.Enrollment, call.Operation == ServerKeygen
	if keygen && !d.Settings.ServerKeygen.Enabled {
		x.note("server key generation", "", fault.New(fault.Forbidden, "server key generation not enabled for this DMS"))
	}
	shown := csr
	if shown == nil {
		shown = &x509.CertificateRequest{}
	}
	x.AuthMode = s.choose(&enrolment.EST, call, shown)
	c, err := s.authenticate(ctx, d, call, shown)
	x.note("authentication", "the DMS takes what was shown, if the client has the key", err)
	x.hook(x.AuthMode)
	if c == nil {
		c = &caller{} // the rest as if it had been let in
	}
	if csr == nil {
		return
	}
	if !keygen {
		x.note("signature", "the request is signed with its own key", checkRequest(&enrolment.EST, enrolment.VerifyCSR, call, c, csr))
	}
	plan, err := s.named(ctx, d, c, csr)
	if err == nil {
		_, err = s.decide(ctx, plan, false)
	}
	if !x.note("device", "the request may enrol "+quoted(d.Settings.IdentityMapping.device(csr)), err) {
		return
	}
	if x.Device = plan.device; enrolment.ManualApproval {
		x.skip("approval", "an administrator has to approve it; until then it is answered 202")
		x.Status = http.StatusAccepted
	}
	s.diagnoseIssue(ctx, x, d, csr, plan.device, keygen)
}

// hook says that a webhook would be asked too.
func (x *diagnosing) hook(mode AuthMode) {
	if mode == ExternalWebhook || mode == CertificateAndHook {
		x.skip("webhook", "it would be asked, and may refuse; try it with webhook-test")
	}
}

// diagnoseIssue builds and lints what would be issued.
func (s *Service) diagnoseIssue(ctx context.Context, x *diagnosing, d *DMS, csr *x509.CertificateRequest, device string, keygen bool) {
	err := func() error {
		profile, err := s.profile(ctx, d)
		if err != nil {
			return err
		}
		ca, err := s.enrolmentCA(ctx, d)
		if err != nil {
			return err
		}
		r := pki.Request{Org: d.Org, CA: ca, Profile: profile, CSR: csr, Device: device, DMS: d.ID}
		if keygen {
			alg, err := d.Settings.ServerKeygen.algorithm()
			if err != nil {
				return err
			}
			key, err := pki.GenerateKey(alg)
			if err != nil {
				return err
			}
			r.Public = key.Public()
		}
		p, err := s.PKI.Prepare(ctx, r)
		if err != nil {
			return err
		}
		return s.PKI.KeyFree(ctx, p)
	}()
	x.note("certificate", "it can be issued by the profile of the DMS", err)
}

func (s *Service) diagnoseRenewal(ctx context.Context, x *diagnosing, d *DMS, call *Call, csr *x509.CertificateRequest) {
	if len(call.Chain) == 0 {
		x.note("authentication", "", fault.New(fault.Unauthenticated, "no client certificate was presented; renew with the device's current certificate"))
		return
	}
	r, leaf := &d.Settings.Reenrollment, call.Chain[0]
	x.AuthMode = r.EST.AuthMode
	old, err := s.PKI.Certificate(systemIn(ctx, d.Org), pki.Fingerprint(leaf.Raw))
	if fault.Is(err, fault.NotFound) {
		err = s.notOurs(ctx, call)
	}
	c := &caller{mode: ClientCertificate, leaf: leaf, device: old.Device}
	if err == nil {
		err = s.mayRenew(ctx, d, call, csr, &old, c)
	}
	if !x.note("authentication", "the certificate may be renewed, if the client has its key", err) {
		return
	}
	x.hook(r.EST.AuthMode)
	x.Device = old.Device
	x.note("window", "it is time enough to renew", s.window(r, leaf))
	if csr == nil {
		return
	}
	x.note("signature", "the request is signed with its own key", checkRequest(&r.EST, d.Settings.Enrollment.VerifyCSR, call, c, csr))
	x.note("names", "the names are those of the certificate", sameNames(csr, leaf))
	s.diagnoseIssue(ctx, x, d, csr, old.Device, false)
}

"""What CRIU says when it fails is part of the error."""

from polypod_oci.criu import why

LOG = """\
(00.000001) Version: 3.17.1
(00.011121) Warn  (criu/kerndat.c:1): something harmless
(00.011121) Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds
(00.011123) Error (criu/vdso.c:613): vdso: Failed to fill self vdso symtable
"""


def test_the_errors_of_a_log(tmp_path):
    (tmp_path / "dump.log").write_text(LOG)
    said = why(tmp_path / "dump.log")
    assert said.startswith("CRIU: (criu/vdso.c:381): vdso: Unexpected")
    assert "Failed to fill" in said
    assert "harmless" not in said


def test_no_log_and_no_error(tmp_path):
    assert "is it installed" in why(tmp_path / "dump.log")
    (tmp_path / "dump.log").write_text("(00.1) all is well\n")
    assert why(tmp_path / "dump.log") == "CRIU: no error in its log"

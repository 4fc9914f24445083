import pytest

from fedray.errors import ConfigError
from fedray.shipped import shipped


def test_a_checkout_uses_its_own_folder(repository):
    assert shipped("cluster_configs") == repository / "cluster_configs"


def test_a_wheel_uses_the_folder_beside_the_package_whatever_else_site_packages_holds(tmp_path):
    package = tmp_path / "site-packages" / "fedray"
    carried = tmp_path / "site-packages" / "fedray_shipped" / "policies"
    stranger = tmp_path / "site-packages" / "policies"
    for folder in (package, carried, stranger):
        folder.mkdir(parents=True)
    assert shipped("policies", package) == carried


def test_an_installation_without_the_files_says_where_it_looked(tmp_path):
    with pytest.raises(ConfigError, match=r"fedray's policies are neither in .* nor in .*fedray_shipped"):
        shipped("policies", tmp_path / "fedray")
